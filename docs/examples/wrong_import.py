from fastapi import FastAPI

from traced_tasks._background import TracedBackgroundTasks

app = FastAPI()


async def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> dict[str, str]:
    tasks.add_task(notify, user_id=42)
    return {"queue": type(tasks).__name__}
