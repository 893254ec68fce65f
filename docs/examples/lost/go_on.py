from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def charge(order_id: int) -> None:
    if order_id == 0:
        raise ValueError("there is no order 0")


def send_receipt(order_id: int) -> None:
    raise TimeoutError(f"no answer for order {order_id}")


def restock(order_id: int) -> None:
    print(f"goods of order {order_id} taken from stock")


def count_order(order_id: int) -> None:
    raise ConnectionError(f"order {order_id} not counted")


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order_id)

    paid = tasks.with_options(on_error="continue")
    paid.add_task(send_receipt, order_id)
    paid.add_task(restock, order_id)
    paid.add_task(count_order, order_id)
