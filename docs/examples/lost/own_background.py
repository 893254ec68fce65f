from fastapi import FastAPI
from fastapi.responses import JSONResponse

from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks

app = FastAPI()


def refund(order_id: int) -> None: ...


def restock(order_id: int) -> None: ...


@app.post("/orders/{order_id}/cancel")
async def cancel(
    order_id: int, tasks: TracedBackgroundTasks
) -> JSONResponse:
    tasks.add_task(refund, order_id)
    restocking = TracedBackgroundTask(restock, order_id)
    return JSONResponse({}, background=restocking)


@app.post("/orders/{order_id}/return")
async def send_back(
    order_id: int, tasks: TracedBackgroundTasks
) -> JSONResponse:
    tasks.add_task(refund, order_id)
    tasks.add_task(restock, order_id)
    return JSONResponse({}, background=tasks)
