"""A whole request, in process, without telemetry: the annotation against a dependency that only takes the queue."""

import sys
from time import perf_counter
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI

from tests.benchmarks.bare import notify
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from traced_tasks import TracedBackgroundTasks

DEPENDENCY = "a dependency that takes BackgroundTasks"
REQUESTS = 5  # in a round


async def request(app: FastAPI, *headers: tuple[bytes, bytes]) -> None:
    """Make a request to an app, as a server would."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "path": "/notifications",
        "raw_path": b"/notifications",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), *headers],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200

    await app(scope, receive, send)


async def the_queue(tasks: BackgroundTasks) -> BackgroundTasks:
    """Take the queue of the request."""
    return tasks


plain, dependency, traced = FastAPI(), FastAPI(), FastAPI()


@plain.post("/notifications")
async def notify_plain(tasks: BackgroundTasks) -> None:
    """Add a task to the queue that FastAPI gives."""
    tasks.add_task(notify, 42)


@dependency.post("/notifications")
async def notify_dependency(tasks: Annotated[BackgroundTasks, Depends(the_queue)]) -> None:
    """Add a task to the queue that a dependency gives."""
    tasks.add_task(notify, 42)


@traced.post("/notifications")
async def notify_traced(tasks: TracedBackgroundTasks) -> None:
    """Add a task to the traced queue."""
    tasks.add_task(notify, 42)


APPS = {"BackgroundTasks": plain, DEPENDENCY: dependency, SUBJECT: traced}


def block(app: FastAPI) -> Block:
    """Return the measurement of an app: the seconds of a request."""

    async def measure() -> float:
        started_at = perf_counter()
        for _ in range(REQUESTS):
            await request(app)
        return (perf_counter() - started_at) / REQUESTS

    return measure


async def measure(rounds: int) -> Rounds:
    """Measure the requests in this process."""
    return await interleave({name: block(app) for name, app in APPS.items()}, rounds)


def row(processes: Processes) -> Row:
    """Return the row of the table."""
    figures = [Figure(DEPENDENCY, "at most", 1.10)]
    return Row("a request, one task, telemetry off", "µs", processes, figures)


if __name__ == "__main__":
    report(measure(int(sys.argv[1])))
