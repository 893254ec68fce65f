from typing import Annotated

from fastapi import FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

OrderTasks = Annotated[
    TracedBackgroundTasks,
    TaskTracing(attributes={"shop.area": "orders"}),
]

app = FastAPI()


def send_receipt(order_id: int) -> None:
    print(f"receipt for order {order_id}")


def restock(order_id: int) -> None:
    print(f"goods of order {order_id} taken from stock")


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: OrderTasks) -> None:
    receipt = tasks.with_options(
        span_name="send receipt",
        attributes={"shop.customer.tier": "gold"},
    )
    receipt.add_task(send_receipt, order_id)
    tasks.add_task(restock, order_id)
