import asyncio

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TracedBackgroundTasks
from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())

app = FastAPI()
app.mount("/tasks", TasksPage())


async def notify(user_id: int) -> None:
    await asyncio.sleep(2)
    print(f"mail to user {user_id}")


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)
