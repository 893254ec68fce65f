from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI

from traced_tasks import TracedBackgroundTasks

app = FastAPI()


def get_session() -> Iterator[str]:
    print("session opened")
    yield "session"
    print("session closed")


RequestSession = Annotated[str, Depends(get_session, scope="request")]
FunctionSession = Annotated[str, Depends(get_session, scope="function")]


def notify(user_id: int) -> None:
    print(f"mail to user {user_id}")


@app.post("/request")
def open_behind(
    tasks: TracedBackgroundTasks, session: RequestSession
) -> str:
    tasks.add_task(notify, user_id=42)
    return session


@app.post("/function")
def closed_before(
    tasks: TracedBackgroundTasks, session: FunctionSession
) -> str:
    tasks.add_task(notify, user_id=42)
    return session
