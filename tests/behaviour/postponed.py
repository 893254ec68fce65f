"""An application whose annotations are strings until FastAPI reads them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from traced_tasks import TaskTracing, TracedBackgroundTasks

router = APIRouter()

LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]


def notify() -> None: ...


def audit(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify)


@router.get("/traced")
async def traced(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify)


@router.get("/linked")
def linked(tasks: LinkedTasks) -> None:
    tasks.add_task(notify)


@router.get("/dependency", dependencies=[Depends(audit)])
async def dependency() -> None: ...
