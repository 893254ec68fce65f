import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TracedBackgroundTasks
from traced_tasks.live import TasksPage

provider = TracerProvider()
set_tracer_provider(provider)
in_production = "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)
if in_production:
    exporter = BatchSpanProcessor(OTLPSpanExporter())
    provider.add_span_processor(exporter)
else:
    app.mount("/tasks", TasksPage())


def notify(user_id: int) -> None: ...


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)
