from typing import Annotated

from fastapi import FastAPI
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TaskTracing, TracedBackgroundTasks

jobs = TracerProvider(
    resource=Resource.create({"service.name": "shop-jobs"})
)
# jobs.add_span_processor(...) as for any provider

JobTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(tracer_provider=jobs)
]

app = FastAPI()


def rebuild_index() -> None: ...


@app.post("/index")
async def rebuild(tasks: JobTasks) -> None:
    tasks.add_task(rebuild_index)
