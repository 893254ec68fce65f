from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI

from traced_tasks import TaskTracing, TracedBackgroundTasks

app = FastAPI()


@app.post("/plain")
async def plain(tasks: BackgroundTasks) -> str:
    return type(tasks).__module__


@app.post("/no-call")
async def no_call(tasks: Annotated[BackgroundTasks, TaskTracing]) -> str:
    return type(tasks).__module__


traced = FastAPI(dependencies=[Depends(TaskTracing())])
mounted = FastAPI()
traced.mount("/mounted", mounted)
app.mount("/traced", traced)


@mounted.post("/")
async def in_mounted(tasks: BackgroundTasks) -> str:
    return type(tasks).__module__


@app.post("/right")
async def right(tasks: TracedBackgroundTasks) -> str:
    return type(tasks).__module__
