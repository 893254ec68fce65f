from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI

from traced_tasks import TracedBackgroundTasks


def write_audit_log(line: str) -> None: ...


async def audit(tasks: TracedBackgroundTasks) -> AsyncIterator[None]:
    tasks.add_task(write_audit_log, "before")
    yield
    tasks.add_task(write_audit_log, "after")


app = FastAPI(dependencies=[Depends(audit)])


@app.delete("/users/{user_id}")
async def delete_user(user_id: int) -> None: ...
