from contextvars import ContextVar
from typing import Annotated

from fastapi import FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

VariablesTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(context_variables=True)
]

app = FastAPI()
tenant: ContextVar[str] = ContextVar("tenant", default="unknown")


def render_report() -> None:
    print(f"report for {tenant.get()}")


@app.post("/{name}/reports")
def reports(name: str, tasks: VariablesTasks) -> None:
    tenant.set(name)
    tasks.add_task(render_report)


@app.post("/{name}/plain-reports")
def plain_reports(name: str, tasks: TracedBackgroundTasks) -> None:
    tenant.set(name)
    tasks.add_task(render_report)
