from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks as Tasks

app = FastAPI()


async def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


@app.post("/checkout")
async def checkout(tasks: Tasks) -> None:
    tasks.add_task(notify, user_id=42)
