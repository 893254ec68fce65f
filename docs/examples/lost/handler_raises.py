from fastapi import FastAPI, HTTPException

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def count_attempt(product_id: int) -> None: ...


@app.post("/sold-out/{product_id}")
async def sold_out(product_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(count_attempt, product_id)
    raise HTTPException(409, "sold out")


@app.post("/broken/{product_id}")
async def broken(product_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(count_attempt, product_id)
    raise LookupError(product_id)
