import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from anyio import sleep
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TracedBackgroundTasks, report_unfinished_tasks

logging.basicConfig(level=logging.INFO)  # (1)!

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    with report_unfinished_tasks():
        yield
    provider.shutdown()  # (2)!


app = FastAPI(lifespan=lifespan)


async def write_export(seconds: float) -> None:
    await sleep(seconds)


def send_link() -> None: ...


@app.post("/exports")
async def export(
    tasks: TracedBackgroundTasks, seconds: float = 2
) -> None:
    tasks.add_task(write_export, seconds)
    tasks.add_task(send_link)


@app.get("/health")
async def health() -> None: ...
