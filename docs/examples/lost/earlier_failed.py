from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def charge(order_id: int) -> None:
    raise TimeoutError(f"no answer for order {order_id}")


def send_receipt(order_id: int) -> None: ...


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order_id)
    tasks.add_task(send_receipt, order_id)
