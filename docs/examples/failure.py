from typing import Annotated

from fastapi import FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

PrivateTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(record_exception=False)
]

app = FastAPI()


class CardDeclinedError(Exception): ...


def charge(card: str) -> None:
    raise CardDeclinedError(f"card {card} was declined")


@app.post("/charge")
async def charge_later(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, "4242 4242 4242 4242")


@app.post("/charge-privately")
async def charge_privately(tasks: PrivateTasks) -> None:
    tasks.add_task(charge, "4242 4242 4242 4242")
