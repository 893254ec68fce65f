from fastapi import FastAPI, HTTPException

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def charge(order_id: int) -> None:
    if order_id == 0:
        raise ValueError("there is no order 0")


async def send_receipt(order_id: int, email: str) -> None: ...


def count_attempt(product_id: int) -> None: ...


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order_id)
    tasks.add_task(send_receipt, order_id, email="ada@example.org")


@app.post("/sold-out/{product_id}")
async def sold_out(product_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(count_attempt, product_id)
    raise HTTPException(409, "sold out")
