from typing import Annotated

from fastapi import FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

LinkedTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(propagation_style="link")
]
DetachedTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(propagation_style="none")
]

app = FastAPI()


async def send_receipt(order_id: int) -> None: ...


async def render_report(quarter: str) -> None: ...


async def refresh_catalogue() -> None: ...


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(send_receipt, 42)


@app.post("/reports")
async def create_report(tasks: LinkedTasks) -> None:
    tasks.add_task(render_report, "2025-Q1")


@app.get("/catalogue")
async def catalogue(tasks: DetachedTasks) -> None:
    tasks.add_task(refresh_catalogue)
