import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TracedBackgroundTasks

provider = TracerProvider()  # (1)!
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
set_tracer_provider(provider)
HTTPXClientInstrumentor().instrument()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    provider.shutdown()  # (2)!


app = FastAPI(lifespan=lifespan, telemetry={"operation_spans": False})


@app.post("/mail")
async def mail() -> None: ...


async def notify(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(url)


async def write_report() -> None:
    await asyncio.sleep(0.1)


async def charge(order_id: int) -> None:
    await asyncio.sleep(0.2)
    raise TimeoutError(f"the bank is silent about order {order_id}")


def send_receipt(order_id: int) -> None: ...


@app.post("/orders/{order_id}")
async def order(
    order_id: int, request: Request, tasks: TracedBackgroundTasks
) -> None:
    tasks.add_task(notify, str(request.url_for("mail")))
    linked = tasks.with_options(propagation_style="link")
    linked.add_task(write_report)
    tasks.add_task(charge, order_id)
    tasks.add_task(send_receipt, order_id)
