import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider
from taskiq_redis import RedisStreamBroker

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.taskiq import TracedTasksMiddleware

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)

broker = RedisStreamBroker(
    os.environ.get("REDIS_URL", "redis://localhost"),
    queue_name="taskiq-shop",
    maxlen=100_000,
    socket_timeout=5,
).with_middlewares(TracedTasksMiddleware())

WorkerTasks = Annotated[TracedBackgroundTasks, TaskTracing(broker=broker)]


@broker.task
async def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    await broker.startup()
    yield
    await broker.shutdown()
    provider.shutdown()


app = FastAPI(lifespan=lifespan, telemetry={"operation_spans": False})


@app.post("/checkout")
async def checkout(tasks: WorkerTasks) -> dict[str, str]:
    tasks.add_task(notify, user_id=42)
    return {"status": "paid"}
