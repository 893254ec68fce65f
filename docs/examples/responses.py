from fastapi import FastAPI
from fastapi.responses import JSONResponse

from traced_tasks import (
    TaskTracing,
    TracedBackgroundTask,
    TracedBackgroundTasks,
)

app = FastAPI()


async def send_welcome(email: str) -> None: ...


def refund(order_id: int) -> None: ...


def restock(order_id: int) -> None: ...


@app.post("/newsletter")
async def subscribe(email: str) -> JSONResponse:
    task = TracedBackgroundTask(send_welcome, email)
    return JSONResponse({"status": "subscribed"}, background=task)


@app.post("/orders/{order_id}/cancel")
async def cancel(order_id: int) -> JSONResponse:
    tasks = TracedBackgroundTasks(
        tracing=TaskTracing(attributes={"shop.area": "orders"})
    )
    tasks.add_task(refund, order_id)
    tasks.add_task(restock, order_id)
    return JSONResponse({"status": "cancelled"}, background=tasks)
