from typing import Annotated

from fastapi import FastAPI
from opentelemetry.trace import Span

from traced_tasks import (
    TaskTracing,
    TracedBackgroundTask,
    TracedBackgroundTasks,
)


def tell_order(span: Span, task: TracedBackgroundTask) -> None:
    if "order_id" in task.kwargs:
        order_id = str(task.kwargs["order_id"])
        span.set_attribute("shop.order", order_id)


OrderTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(task_hook=tell_order)
]

app = FastAPI()


def send_receipt(*, order_id: int) -> None: ...


def refresh_catalogue() -> None: ...


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: OrderTasks) -> None:
    tasks.add_task(send_receipt, order_id=order_id)
    tasks.add_task(refresh_catalogue)
