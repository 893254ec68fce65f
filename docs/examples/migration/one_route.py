from fastapi import BackgroundTasks, FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


async def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


def remind(tasks: BackgroundTasks, user_id: int) -> None:
    tasks.add_task(notify, user_id)


@app.post("/orders")
async def order(tasks: BackgroundTasks) -> None:
    remind(tasks, user_id=42)


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    remind(tasks, user_id=42)
