from typing import Annotated

from fastapi import Depends, FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

reports = TaskTracing(
    propagation_style="link",
    attributes={"shop.area": "reports"},
)
ReportTasks = Annotated[TracedBackgroundTasks, reports]

app = FastAPI()


def render_report(quarter: str) -> None:
    print(f"report for {quarter}")


def count_request(route: str) -> None:
    print(f"one more request for {route}")


async def counted(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(count_request, "/reports")


@app.post("/reports/{quarter}", dependencies=[Depends(counted)])
async def create_report(quarter: str, tasks: ReportTasks) -> None:
    tasks.add_task(render_report, quarter)
