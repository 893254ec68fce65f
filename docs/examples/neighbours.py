from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

LinkedTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(propagation_style="link")
]

router = APIRouter()


async def notify(user_id: int) -> None: ...


@router.post("/plain")
async def plain(tasks: BackgroundTasks) -> None:
    tasks.add_task(notify, 42)


@router.post("/traced")
async def traced(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, 42)


@router.post("/linked")
async def linked(tasks: LinkedTasks) -> None:
    tasks.add_task(notify, 42)


app = FastAPI()
app.include_router(router)
