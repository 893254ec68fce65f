from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


async def send_receipt(order_id: int) -> None:
    print(f"receipt for order {order_id}")


def write_export(year: int, *, compress: bool = False) -> None:
    print(f"orders of {year} exported, compressed: {compress}")


@app.post("/orders/{order_id}")
async def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(send_receipt, order_id)


@app.post("/exports/{year}")
def export(year: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(write_export, year, compress=True)
