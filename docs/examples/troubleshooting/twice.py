from fastapi import BackgroundTasks, FastAPI
from opentelemetry import trace

from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks

app = FastAPI()
tracer = trace.get_tracer("shop")


async def notify(user_id: int) -> None: ...


@tracer.start_as_current_span("charge card")
async def charge(order_id: int) -> None: ...


@app.post("/by-hand")
async def by_hand(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, 7)


@app.post("/task-in-task")
async def task_in_task(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(TracedBackgroundTask(notify, 42))


@app.post("/in-plain-queue")
async def in_plain_queue(tasks: BackgroundTasks) -> None:
    tasks.tasks.append(TracedBackgroundTask(notify, 42))
