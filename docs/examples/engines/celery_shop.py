# mypy: disable-error-code="import-untyped, untyped-decorator"
# pyright: basic

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from celery import Celery
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.celery import trace_tasks

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)

celery = Celery(
    "shop", broker=os.environ.get("REDIS_URL", "redis://localhost")
)
celery.conf.update(
    task_default_queue="celery-shop",
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"socket_timeout": 2},
    task_publish_retry_policy={"max_retries": 0},
)
trace_tasks(celery)

WorkerTasks = Annotated[TracedBackgroundTasks, TaskTracing(broker=celery)]


@celery.task
def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan, telemetry={"operation_spans": False})


@app.post("/checkout")
async def checkout(tasks: WorkerTasks) -> dict[str, str]:
    tasks.add_task(notify, user_id=42)
    return {"status": "paid"}
