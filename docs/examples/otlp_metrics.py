from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter,
)
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from traced_tasks import TracedBackgroundTasks

reader = PeriodicExportingMetricReader(OTLPMetricExporter())
provider = MeterProvider([reader])
set_meter_provider(provider)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    provider.shutdown()


app = FastAPI(lifespan=lifespan)


def send_receipt(order_id: int) -> None: ...


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(send_receipt, order_id)
