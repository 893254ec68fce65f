import asyncio

from fastapi import FastAPI, Response
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from traced_tasks import TracedBackgroundTasks

reader = PrometheusMetricReader(scope_info_enabled=False)
set_meter_provider(MeterProvider([reader]))

app = FastAPI()


@app.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def charge(order_id: int) -> None:
    await asyncio.sleep(0.2)
    if order_id == 0:
        raise ValueError("there is no order 0")


def send_receipt(order_id: int) -> None: ...


async def write_export() -> None:
    await asyncio.sleep(600)


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order_id)
    tasks.add_task(send_receipt, order_id)


@app.post("/exports")
async def export(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(write_export)
