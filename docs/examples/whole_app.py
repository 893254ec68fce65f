from fastapi import BackgroundTasks, Depends, FastAPI

from traced_tasks import TaskTracing

app = FastAPI(dependencies=[Depends(TaskTracing())])


async def notify(user_id: int) -> None: ...


@app.post("/checkout")
async def checkout(tasks: BackgroundTasks) -> None:
    tasks.add_task(notify, user_id=42)
