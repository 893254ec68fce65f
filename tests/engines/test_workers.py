"""A task that is handed over to a worker process: two spans in the right places, whatever engine takes it there."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import baggage, context, propagate
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from tests.conftest import Metrics, Spans, is_child
from tests.engines.conftest import ENGINES, Worker, celery_instrumentation
from tests.engines.recording import wait_until
from traced_tasks import TaskTracing, TracedBackgroundTasks

Workers = dict[tuple[str, str], Worker]
OpenShop = Callable[..., SimpleNamespace]

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # Taskiq knows no other


def ids(span: dict[str, Any]) -> tuple[int, int | None, int]:
    """The ids of the trace, the parent and the span itself."""
    parent = int(span["parent_id"], 16) if span["parent_id"] else None
    return int(span["context"]["trace_id"], 16), parent, int(span["context"]["span_id"], 16)


def message_id(send: ReadableSpan) -> str:
    assert send.attributes is not None
    return str(send.attributes["messaging.message.id"])


async def checkout(
    app: FastAPI, client: httpx.AsyncClient, tracing: TaskTracing, add: Callable[[TracedBackgroundTasks], None]
) -> None:
    """A request whose handler adds tasks."""

    @app.post("/checkout")
    async def handler(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        add(tasks)

    assert (await client.post("/checkout")).status_code == 200


@pytest.mark.parametrize("style", ["child", "link", "none"])
@pytest.mark.parametrize("engine", ENGINES)
async def test_one_producer_and_one_consumer(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    workers: Workers,
    open_shop: OpenShop,
    engine: str,
    style: Any,
) -> None:
    """The send is a child of the request, and the task in the worker where `propagation_style` puts it."""
    shop = open_shop(engine)

    def add(tasks: TracedBackgroundTasks) -> None:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        tasks.add_task(shop.tasks.notify, user_id=42)
        context.detach(token)

    await checkout(app, client, TaskTracing(broker=shop.broker, propagation_style=style), add)

    send = spans["send notify"]
    assert is_child(send, spans["POST /checkout"])
    assert send.kind is SpanKind.PRODUCER
    messaging = {
        "code.function.name": f"tests.engines.with_{engine}.add_tasks.<locals>.notify",
        "messaging.system": engine,
        "messaging.destination.name": f"{engine}-own",
        "messaging.message.id": message_id(send),
    }
    sent = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert dict(send.attributes or {}) == {**messaging, **sent}
    recording = workers[engine, "own"].recording
    (task,) = recording.wait(1, messaging_message_id=message_id(send))
    assert (task["name"], task["kind"]) == ("background_task notify", "SpanKind.CONSUMER")
    assert task["attributes"].pop("background_task.queue.duration") > 0
    processed = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    assert task["attributes"] == {**messaging, **processed, "place": "worker"}
    trace_id, parent, span_id = ids(task)
    assert [link["context"]["span_id"] for link in task["links"]] == (
        [f"0x{send.context.span_id:016x}"] if style == "link" else []
    )
    assert (trace_id == send.context.trace_id, parent) == (
        (True, send.context.span_id) if style == "child" else (False, None)
    )
    (work,) = [span for span in recording.spans() if ids(span)[1] == span_id]
    assert work["attributes"] == {"tenant": "acme"}


@pytest.mark.parametrize("style", ["child", "link", "none"])
@pytest.mark.parametrize("instrumented", ["app", "worker", "both"])
@pytest.mark.parametrize("engine", ["taskiq", "celery"])
async def test_beside_the_engines_own_instrumentation(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    measured: Metrics,
    workers: Workers,
    open_shop: OpenShop,
    engine: str,
    instrumented: str,
    style: Any,
) -> None:
    """Where the engine's own instrumentation is on, it makes that process's span, and there is one of each kind.

    It knows no other style than `child`.
    """
    queue = "own" if instrumented == "app" else "instrumented"
    in_app = instrumented != "worker"
    shop = open_shop(engine, queue, in_app)
    recording = workers[engine, queue].recording
    seen = {span["context"]["span_id"] for span in recording.spans()}

    with celery_instrumentation(spans) if engine == "celery" and in_app else nullcontext():
        tracing = TaskTracing(broker=shop.broker, propagation_style=style)
        await checkout(app, client, tracing, lambda tasks: tasks.add_task(shop.tasks.notify, user_id=1))

    (send,) = [span for span in spans() if span.kind is SpanKind.PRODUCER]
    assert is_child(send, spans["POST /checkout"])
    assert (send.name == "send notify") == (not in_app)
    ours = instrumented == "app"

    def found() -> list[dict[str, Any]]:
        """The spans of this task: those of its trace, or, in the style `none`, those that are new."""
        in_trace = ours and style != "child"
        new = [span for span in recording.spans() if span["context"]["span_id"] not in seen or not in_trace]
        return [span for span in new if in_trace or ids(span)[0] == send.context.trace_id]

    wait_until(lambda: len(found()) >= 2)
    (task,) = [span for span in found() if span["kind"] == "SpanKind.CONSUMER"]
    assert (task["name"] == "background_task notify") == ours
    assert ids(task)[1] == (None if ours and style != "child" else send.context.span_id)
    (work,) = [span for span in found() if span["name"] == "work"]
    assert ids(work)[1] == ids(task)[2]
    # Our metrics stay.
    function = f"tests.engines.with_{engine}.add_tasks.<locals>.notify"
    wait_until(lambda: recording.point("background_task.duration", function) is not None)
    assert measured.points("background_task.duration") == {}


@pytest.mark.parametrize("engine", ENGINES)
async def test_metrics(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    measured: Metrics,
    workers: Workers,
    open_shop: OpenShop,
    engine: str,
) -> None:
    """A task is measured where it runs: in the worker. Until it is sent it waits in the application."""
    shop = open_shop(engine)
    waited: list[dict[str, int]] = []

    def add(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(shop.tasks.sleep, 0.3)
        waited.append(measured.waiting())

    await checkout(app, client, TaskTracing(broker=shop.broker), add)

    function = f"tests.engines.with_{engine}.add_tasks.<locals>.sleep"
    assert waited == [{function: 1}]
    assert measured.waiting() == {function: 0}
    assert measured.points("background_task.duration") == measured.points("background_task.queue.duration") == {}
    assert measured.active() == {function: 0}
    recording = workers[engine, "own"].recording
    wait_until(lambda: recording.point("background_task.duration", function) is not None)
    duration = recording.point("background_task.duration", function)
    queue_duration = recording.point("background_task.queue.duration", function)
    assert duration is not None
    assert queue_duration is not None
    assert duration["sum"] / duration["count"] >= 0.3
    assert queue_duration["count"] == duration["count"]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("engine", ENGINES)
async def test_each_attempt(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    workers: Workers,
    open_shop: OpenShop,
    engine: str,
    told: bool,
) -> None:
    """Each attempt of a task that is retried has its span. Its message stays where it is, if that is asked for."""
    shop = open_shop(engine)
    secret = f"card of {engine} {told}"

    await checkout(
        app,
        client,
        TaskTracing(broker=shop.broker, record_exception=told),
        lambda tasks: tasks.add_task(shop.tasks.fail, secret),
    )

    send = spans["send fail"]
    assert send.status.is_ok
    recording = workers[engine, "own"].recording
    attempts = recording.wait(2, messaging_message_id=message_id(send))
    assert [span["attributes"]["error.type"] for span in attempts] == ["ValueError", "ValueError"]
    assert [span["status"]["status_code"] for span in attempts] == ["ERROR", "ERROR"]
    assert [ids(span)[1] for span in attempts] == [send.context.span_id] * 2
    first, second = [span["attributes"]["background_task.queue.duration"] for span in attempts]
    assert first < second
    assert [len(span["events"]) for span in attempts] == ([1, 1] if told else [0, 0])
    assert (secret in recording.path.read_text()) == told
    function = f"tests.engines.with_{engine}.add_tasks.<locals>.fail"
    failed = {"error.type": "ValueError"}
    wait_until(lambda: recording.point("background_task.duration", function, **failed) is not None)


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_travels(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop, engine: str
) -> None:
    """A span's name and attributes go to the worker too. Links and the hook are for the send."""
    shop = open_shop(engine)
    other = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1))
    seen: list[Any] = []
    tracing = TaskTracing(broker=shop.broker, attributes={"tier": "gold"}, links=[Link(other)])

    def add(tasks: TracedBackgroundTasks) -> None:
        mine = tasks.with_options(
            span_name="tell them",
            attributes={"sizes": [1, 2], "place": "message"},
            task_hook=lambda span, task: seen.append((span, task.kwargs)),
        )
        mine.add_task(shop.tasks.notify, user_id=42)

    await checkout(app, client, tracing, add)

    send = spans["send notify"]
    assert [link.context for link in send.links] == [other]
    assert [(span.get_span_context(), kwargs) for span, kwargs in seen] == [(send.context, {"user_id": 42})]
    recording = workers[engine, "own"].recording
    (task,) = recording.wait(1, messaging_message_id=message_id(send))
    assert task["name"] == "tell them"
    for attributes in (send.attributes, task["attributes"]):
        assert attributes is not None
        sizes: Any = attributes["sizes"]
        assert (attributes["tier"], list(sizes), attributes["place"]) == ("gold", [1, 2], "message")
    assert task["links"] == []


async def foreign(engine: str, shop: SimpleNamespace, headers: dict[str, str]) -> None:
    """Send as somebody does who has no traced-tasks."""
    if engine == "taskiq":
        await shop.tasks.notify.kicker().with_labels(**headers).kiq(user_id=1)
    elif engine == "celery":
        shop.tasks.notify.apply_async((), {"user_id": 1}, headers=headers)
    else:
        shop.tasks.notify.send_with_options(kwargs={"user_id": 1}, **headers)


@pytest.mark.parametrize("header", [{}, {"traced_tasks": "{"}, {"traced_tasks": '{"queued_at": 1, "span_name": 1}'}])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_message_of_somebody_else(
    spans: Spans, workers: Workers, open_shop: OpenShop, engine: str, header: dict[str, str]
) -> None:
    """A message that does not come from here is linked to what it says it comes from. How long it waited is unknown."""
    shop = open_shop(engine)
    with spans.provider.get_tracer("other").start_as_current_span("other") as span:
        headers = dict(header)
        propagate.inject(headers)

    await foreign(engine, shop, headers)

    recording = workers[engine, "own"].recording

    def linked() -> list[dict[str, Any]]:
        span_id = f"0x{span.get_span_context().span_id:016x}"
        return [each for each in recording.spans() if span_id in [link["context"]["span_id"] for link in each["links"]]]

    wait_until(lambda: bool(linked()))
    (task,) = linked()
    assert task["parent_id"] is None
    assert "background_task.queue.duration" not in task["attributes"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_message_without_context(workers: Workers, open_shop: OpenShop, engine: str) -> None:
    """A message that says nothing of where it comes from is a trace of its own."""
    recording = workers[engine, "own"].recording
    before = len(recording.spans())

    await foreign(engine, open_shop(engine), {})

    wait_until(lambda: len(recording.spans()) >= before + 2)
    (task,) = [span for span in recording.spans()[before:] if span["name"] == "background_task notify"]
    assert (task["parent_id"], task["links"]) == (None, [])


async def test_a_function_that_waits_for_a_thread(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, workers: Workers, open_shop: OpenShop
) -> None:
    """The span of a `def` task begins when the only thread of a Taskiq worker's pool has it."""
    shop = open_shop("taskiq")

    def add(tasks: TracedBackgroundTasks) -> None:
        for _ in range(3):
            tasks.add_task(shop.tasks.block, 0.2)

    await checkout(app, client, TaskTracing(broker=shop.broker), add)

    found = workers["taskiq", "own"].recording.wait(3, spans["POST /checkout"].context.trace_id)
    found.sort(key=lambda span: span["start_time"])
    assert all(before["end_time"] <= after["start_time"] for before, after in pairwise(found))


def seconds(span: dict[str, Any]) -> float:
    start, end = (datetime.fromisoformat(span[key]) for key in ("start_time", "end_time"))
    return (end - start).total_seconds()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_worker_that_stops(
    app: FastAPI,
    client: httpx.AsyncClient,
    spans: Spans,
    start_worker: Callable[[str, str], Worker],
    open_shop: OpenShop,
    tmp_path: Path,
    engine: str,
) -> None:
    """A worker that is told to stop exports what its batch processor still has, and its metrics."""
    worker, shop, done = start_worker(engine, "batch"), open_shop(engine, "batch"), tmp_path / "done"

    await checkout(
        app, client, TaskTracing(broker=shop.broker), lambda tasks: tasks.add_task(shop.tasks.touch, str(done))
    )
    wait_until(done.exists)
    worker.stop()

    (task,) = [span for span in worker.recording.spans() if span["name"] == "background_task touch"]
    assert ids(task)[1] == spans["send touch"].context.span_id
    function = f"tests.engines.with_{engine}.add_tasks.<locals>.touch"
    assert worker.recording.point("background_task.duration", function) is not None
