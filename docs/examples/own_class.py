from typing import Any

from fastapi import FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


async def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


class CountedTasks(TracedBackgroundTasks):
    count = 0

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> None:
        self.count += 1
        super().add_task(func, *args, **kwargs)


@app.post("/checkout")
async def checkout(tasks: CountedTasks) -> dict[str, str]:
    tasks.add_task(notify, user_id=42)
    return {"queue": type(tasks).__name__}
