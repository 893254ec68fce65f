from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
)

from traced_tasks import TracedBackgroundTasks

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)


async def notify(user_id: int) -> None: ...


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)
