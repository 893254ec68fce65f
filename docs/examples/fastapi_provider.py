from typing import Annotated

from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TaskTracing, TracedBackgroundTasks

shop = TracerProvider()
# shop.add_span_processor(...) as for any provider

ShopTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(tracer_provider=shop)
]

app = FastAPI(telemetry={"tracer_provider": shop})


def notify(user_id: int) -> None: ...


@app.post("/unseen")
async def unseen(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)


@app.post("/seen")
async def seen(tasks: ShopTasks) -> None:
    tasks.add_task(notify, user_id=42)
