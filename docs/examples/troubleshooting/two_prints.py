from fastapi import FastAPI
from opentelemetry import trace

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


async def notify(_: int) -> None:
    print(trace.get_current_span())


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    print(type(tasks))
    tasks.add_task(notify, 42)
