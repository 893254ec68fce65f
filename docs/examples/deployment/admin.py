from dataclasses import asdict
from typing import Any

from anyio import sleep
from fastapi import FastAPI, Response

from traced_tasks import TracedBackgroundTasks, unfinished_tasks

app = FastAPI()


async def write_export() -> None:
    await sleep(60)


def send_link() -> None: ...


@app.post("/exports")
async def export(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(write_export)
    tasks.add_task(send_link)


@app.get("/admin/tasks")
def list_tasks() -> list[dict[str, Any]]:
    return [asdict(task) for task in unfinished_tasks()]


@app.get("/health")
def health(response: Response) -> dict[str, int]:
    waiting = [t for t in unfinished_tasks() if t.state == "waiting"]
    late = sum(task.seconds > 300 for task in waiting)
    if late:
        response.status_code = 503
    return {"waiting": len(waiting), "late": late}
