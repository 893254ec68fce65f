from fastapi import BackgroundTasks, Depends, FastAPI, Request

from traced_tasks import TracedBackgroundTasks


def write_audit_log(method: str, path: str) -> None:
    print(f"{method} {path}")


def remove_avatar(user_id: int) -> None:
    print(f"avatar of user {user_id} removed")


def refresh_search(user_id: int) -> None:
    print(f"user {user_id} removed from the index")


async def audit(request: Request, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(write_audit_log, request.method, request.url.path)


async def search(user_id: int, tasks: BackgroundTasks) -> None:
    tasks.add_task(refresh_search, user_id)


app = FastAPI(dependencies=[Depends(audit)])


@app.delete("/users/{user_id}", dependencies=[Depends(search)])
def delete_user(user_id: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(remove_avatar, user_id)
