# mypy: disable-error-code="no-untyped-call"

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.dramatiq import TracedTasksMiddleware

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)

redis = os.environ.get("REDIS_URL", "redis://localhost")
broker = RedisBroker(url=f"{redis}?socket_timeout=2")
broker.add_middleware(TracedTasksMiddleware())
dramatiq.set_broker(broker)

WorkerTasks = Annotated[TracedBackgroundTasks, TaskTracing(broker=broker)]


@dramatiq.actor(queue_name="dramatiq-shop")
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
