from anyio import sleep
from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


async def write_export() -> None:
    await sleep(600)


def send_link() -> None: ...


@app.post("/exports")
async def export(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(write_export)
    tasks.add_task(send_link)
