from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks
from traced_tasks.live import TasksPage


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    app.mount("/tasks", TasksPage())
    yield


app = FastAPI(lifespan=lifespan, telemetry={"auto_configure": True})


def notify(user_id: int) -> None: ...


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)
