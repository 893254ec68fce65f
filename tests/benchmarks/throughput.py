"""Requests per second, end to end: real uvicorn in a process of its own, and a load generator in this one.

One server has all the apps, under FastAPI's own telemetry with `operation_spans` on, and is asked in short bursts, in
turns. `python -m tests.benchmarks.throughput KIND SECONDS ROUNDS` starts it, and measures the apps of a kind of tasks.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI
from starlette.types import Receive, Scope, Send

from tests.benchmarks.bare import notify, notify_sync
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from tests.benchmarks.load import load
from tests.benchmarks.requests import the_queue
from tests.benchmarks.tasks import CONFIGURATIONS, configure
from traced_tasks import TracedBackgroundTasks

FASTAPI = "BackgroundTasks, operation_spans"
DEPENDENCY = "the same, by a dependency that takes it"
CONNECTIONS = 16
KINDS = ("async", "sync")


async def plain_async(tasks: BackgroundTasks) -> None:
    """Add an async task to FastAPI's queue."""
    tasks.add_task(notify, 42)


async def dependency_async(tasks: Annotated[BackgroundTasks, Depends(the_queue)]) -> None:
    """Add an async task to FastAPI's queue, which a dependency gives."""
    tasks.add_task(notify, 42)


async def traced_async(tasks: TracedBackgroundTasks) -> None:
    """Add an async task to the traced queue."""
    tasks.add_task(notify, 42)


async def plain_sync(tasks: BackgroundTasks) -> None:
    """Add a sync task to FastAPI's queue."""
    tasks.add_task(notify_sync, 42)


async def dependency_sync(tasks: Annotated[BackgroundTasks, Depends(the_queue)]) -> None:
    """Add a sync task to FastAPI's queue, which a dependency gives."""
    tasks.add_task(notify_sync, 42)


async def traced_sync(tasks: TracedBackgroundTasks) -> None:
    """Add a sync task to the traced queue."""
    tasks.add_task(notify_sync, 42)


# An app for each, since a route is the slower to find, the later it stands.
apps: dict[str, FastAPI] = {}
for handler in (plain_async, dependency_async, traced_async, plain_sync, dependency_sync, traced_sync):
    path = f"/{handler.__name__}"
    apps[path] = FastAPI()
    apps[path].get(path)(handler)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand a request to the app of its path."""
    await apps[scope["path"]](scope, receive, send)


@contextmanager
def server() -> Iterator[int]:
    """Serve the app in a process of its own, and give the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        port, fd = listening.getsockname()[1], listening.fileno()
        command = [sys.executable, "-m", "tests.benchmarks.throughput", "serve", str(fd)]
        process = subprocess.Popen(command, pass_fds=[fd])
    with process:
        try:
            yield port
        finally:
            process.terminate()


def serve(fd: int) -> None:
    """Be the server."""
    configure(CONFIGURATIONS["tracing"])
    # Not uvicorn's `fd=`, which takes it for a Unix socket: then TCP holds answers back, and 40 ms is all one measures.
    listening = socket.socket(fileno=fd)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")).run([listening])


def burst(port: int, path: str, seconds: float) -> Block:
    """Return the measurement of a path: the requests per second."""

    async def measure() -> float:
        return await load(port, path, seconds, CONNECTIONS)

    return measure


async def measure(kind: str, seconds: float, rounds: int) -> Rounds:
    """Measure the apps of a kind of tasks on a server."""
    with server() as port:
        return await interleave(
            {
                FASTAPI: burst(port, f"/plain_{kind}", seconds),
                DEPENDENCY: burst(port, f"/dependency_{kind}", seconds),
                SUBJECT: burst(port, f"/traced_{kind}", seconds),
            },
            rounds,
        )


def row(kind: str, processes: Processes) -> Row:
    """Return the row of the table for a kind of tasks."""
    return Row(f"uvicorn, one {kind} task a request", "req/s", processes, [Figure(FASTAPI, "at least", 0.97)])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        report(measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
