from collections.abc import Callable
from functools import wraps
from typing import Any

from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def announced(func: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        print(f"{func.__name__} starts")
        return func(*args, **kwargs)

    return wrapper


@announced
async def send_receipt(order_id: int) -> None:
    print(f"receipt for order {order_id}")


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(send_receipt, order_id)
