"""What is handed over, and what becomes of it in the application, without workers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial, wraps
from multiprocessing import get_context
from time import sleep
from types import SimpleNamespace
from typing import Annotated, Any, cast
from unittest.mock import Mock, call

import dramatiq
import httpx
import pytest
import trio
from celery import Celery, current_app, shared_task, signals  # type: ignore[import-untyped]
from celery.exceptions import Ignore, OperationalError, Reject  # type: ignore[import-untyped]
from dramatiq.brokers.stub import StubBroker
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from taskiq import (
    AsyncBroker,
    BrokerMessage,
    InMemoryBroker,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqResult,
    async_shared_broker,
)
from taskiq import TaskiqMiddleware as TaskiqMiddleware_
from taskiq.exceptions import NoResultError
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

from tests.conftest import Metrics, Spans, collect_garbage, is_child
from tests.engines import pooled
from tests.engines.conftest import ENGINES, celery_instrumentation
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks.celery import trace_tasks
from traced_tasks.dramatiq import TracedTasksMiddleware as DramatiqMiddleware
from traced_tasks.taskiq import TracedTasksMiddleware as TaskiqMiddleware

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


class Broken(AsyncBroker):
    """A broker that is down."""

    async def kick(self, message: BrokerMessage) -> None:
        raise ConnectionError("no broker at redis://:secret@there")

    def listen(self) -> Any: ...


class BrokenStub(StubBroker):
    """A broker that is down."""

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        raise ConnectionError("no broker at redis://:secret@there")


def make(engine: str, broken: bool = False, tracing: TaskTracing | None = None) -> SimpleNamespace:
    """A broker in this process, or one that is down, and two tasks."""
    ran: list[Any] = []

    def notify(user_id: int) -> None:
        ran.append((user_id, trace.get_current_span()))

    async def async_notify(user_id: int) -> None:
        ran.append((user_id, trace.get_current_span()))

    if engine == "taskiq":
        taskiq: AsyncBroker = Broken() if broken else InMemoryBroker(await_inplace=True)
        taskiq.add_middlewares(TaskiqMiddleware(tracing=tracing))
        return SimpleNamespace(
            broker=taskiq, ran=ran, notify=taskiq.task(notify), async_notify=taskiq.task(async_notify), method="kiq"
        )
    if engine == "celery":
        url = "redis://:secret@127.0.0.1:9/0" if broken else "memory://"
        app = Celery("shop", broker=url, set_as_current=False)
        retries = {"max_retries": 1, "interval_start": 0}
        app.conf.update(task_always_eager=not broken, task_publish_retry=False, broker_transport_options=retries)
        trace_tasks(app, tracing=tracing)
        return SimpleNamespace(broker=app, ran=ran, notify=app.task(shared=False)(notify), method="delay")
    stub = BrokenStub() if broken else StubBroker()
    stub.add_middleware(DramatiqMiddleware(tracing=tracing))
    stub.add_middleware(dramatiq.middleware.AsyncIO())
    actors = dramatiq.actor(broker=stub)(notify), dramatiq.actor(broker=stub)(async_notify)
    return SimpleNamespace(broker=stub, ran=ran, notify=actors[0], async_notify=actors[1], method="send")


def queue(shop: SimpleNamespace, **options: Any) -> Any:
    return TracedBackgroundTasks(tracing=TaskTracing(broker=shop.broker, **options))


def work_off(shop: SimpleNamespace) -> None:
    """Have a worker in this process do what is in a stub's queues."""
    if isinstance(shop.broker, StubBroker):
        worker = dramatiq.Worker(shop.broker, worker_timeout=50)
        worker.start()
        shop.broker.join("default", fail_fast=False)
        worker.stop()


@pytest.mark.parametrize("as_method", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
async def test_without_workers(spans: Spans, measured: Metrics, engine: str, as_method: bool) -> None:
    """Where the engine runs a task in this process, it is one producer and one consumer all the same."""
    shop = make(engine)
    tasks = queue(shop)

    tasks.add_task(getattr(shop.notify, shop.method) if as_method else shop.notify, user_id=42)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    send, task = spans["send notify"], spans["background_task notify"]
    assert (send.kind, task.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert is_child(task, send)
    ((user_id, current),) = shop.ran
    assert (user_id, current.get_span_context()) == (42, task.context)
    (point,) = measured.points("background_task.duration").values()
    assert point.count == 1
    assert list(measured.waiting().values()) == [0]


@pytest.mark.parametrize("name", ["notify", "async_notify", "method"])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_task_of_another_broker(spans: Spans, engine: str, name: str) -> None:
    """A task whose broker is not the one that was given runs here, under its function's name."""
    if (engine, name) == ("celery", "async_notify"):
        return  # it has none
    shop, others = make(engine), {each: make(each) for each in ENGINES}
    func = getattr(shop.notify, shop.method) if name == "method" else getattr(shop, name)

    for tracing in (TaskTracing(), *(TaskTracing(broker=other.broker) for other in others.values())):
        tasks = TracedBackgroundTasks(tracing=tracing)
        tasks.add_task(func, 42)
        await tasks()
        await asyncio.to_thread(work_off, shop)

    own = [span for span in spans.tasks() if span.kind is SpanKind.INTERNAL]
    function = "notify" if name == "method" else name
    assert [span.name for span in own] == [f"background_task {function}"] * 4
    assert {dict(span.attributes or {})["code.function.name"] for span in own} == {
        f"tests.engines.test_handover.make.<locals>.{function}"
    }
    assert len(shop.ran) == 4
    if name != "method":
        assert [span.get_span_context() for _, span in shop.ran] == [span.context for span in own]


@pytest.mark.parametrize("engine", ENGINES)
async def test_plain_functions(spans: Spans, engine: str) -> None:
    """Every other function runs here, in order with what is handed over, also a method, a partial or a mock."""
    shop, ran = make(engine), []

    class Mailer:
        def send(self, number: int) -> None:
            ran.append(number)

        kiq = delay = send

    mock = Mock(spec=type(shop.notify), return_value=None)
    tasks = queue(shop)
    for func in (Mailer().send, Mailer().kiq, Mailer().delay, partial(Mailer().send)):
        tasks.add_task(func, len(tasks.tasks))
    tasks.add_task(shop.notify, user_id=1)
    tasks.add_task(mock, 4)
    tasks.add_task(partial(shop.notify, 2))
    await tasks()

    assert ran == [0, 1, 2, 3]
    assert mock.call_args_list == [call(4)]
    sent = [span.name for span in spans.tasks() if span.kind is not SpanKind.CONSUMER]
    assert sent == [
        *["background_task Mailer.send"] * 4,
        "send notify",
        f"background_task {type(mock).__name__}",
        "background_task notify",
    ]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_broker_that_is_down(
    spans: Spans, measured: Metrics, caplog: pytest.LogCaptureFixture, engine: str
) -> None:
    """A hand-over that fails is `unconfirmed`: the exception goes on, and those behind it are skipped."""
    shop = make(engine, broken=True)
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    tasks.add_task(print)

    with pytest.raises(Exception, match=r"127.0.0.1:9|no broker|Cannot send") as raised:
        await tasks()

    assert not isinstance(raised.value, ExceptionGroup)
    send = spans["send notify"]
    assert send.attributes is not None
    assert (send.status.status_code, send.attributes["error.type"]) == (StatusCode.ERROR, "unconfirmed")
    (event,) = send.events
    assert event.attributes is not None
    function = "tests.engines.test_handover.make.<locals>.notify"
    cls = f"{type(raised.value).__module__}.{type(raised.value).__qualname__}".removeprefix("builtins.")
    assert event.attributes["exception.type"] == cls
    warning, skipped = [record for record in caplog.records if record.name == "traced_tasks"]
    assert f"{function} is unconfirmed: to hand it over to {engine} failed with {cls}" in warning.getMessage()
    assert str(send.attributes["messaging.message.id"]) in warning.getMessage()
    assert vars(warning)["error.type"] == "unconfirmed"
    assert "skipped" in skipped.getMessage()
    assert measured.lost() == {(function, "unconfirmed"): 1, ("builtins.print", "skipped"): 1}
    assert shop.ran == []


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_failed_send_without_its_exception(spans: Spans, caplog: pytest.LogCaptureFixture, engine: str) -> None:
    """With `record_exception=False` nothing of the exception leaves the process, and with `"continue"` others go on."""
    shop = make(engine, broken=True)
    ran: list[int] = []
    tasks = queue(shop, record_exception=False, on_error="continue")
    tasks.add_task(shop.notify, 42)
    tasks.add_task(ran.append, 1)

    with pytest.raises(ExceptionGroup):
        await tasks()

    assert ran == [1]
    assert "secret" not in spans["send notify"].to_json() + caplog.text
    assert spans["send notify"].events == ()


@pytest.mark.parametrize("raised", [ConnectionError("down"), asyncio.CancelledError()])
async def test_a_span_that_the_instrumentation_left_open(spans: Spans, raised: BaseException) -> None:
    """A failed send has one span with the engine's own instrumentation too, and that is over."""

    class Failing(InMemoryBroker):
        async def kick(self, message: BrokerMessage) -> None:
            raise raised

    broker = Failing()
    broker.add_middlewares(OpenTelemetryMiddleware())
    notify = broker.task(async_nothing)
    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(notify)

    with pytest.raises(BaseException):  # noqa: B017, PT011
        await tasks()

    (send,) = spans()
    assert send.attributes is not None
    assert send.kind is SpanKind.PRODUCER
    assert send.name.startswith("send/")
    assert (send.status.status_code, send.attributes["error.type"]) == (StatusCode.ERROR, "unconfirmed")


async def async_nothing(*args: Any) -> None: ...


@dataclass
class Card:
    number: str


async def test_an_instrumentation_that_had_no_chance(spans: Spans) -> None:
    """A send that fails before the engine's own instrumentation sees it has a span of ours."""
    broker = InMemoryBroker()
    broker.add_middlewares(OpenTelemetryMiddleware())
    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(broker.task(async_nothing), Card)  # which no message can carry

    with pytest.raises(ValueError, match="Cannot serialize types"):
        await tasks()

    (send,) = spans()
    assert send.attributes is not None
    assert (send.name, send.attributes["error.type"]) == ("send async_nothing", "unconfirmed")


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_send_that_never_happens(
    app: FastAPI, client: httpx.AsyncClient, spans: Spans, measured: Metrics, engine: str
) -> None:
    """A task that is dropped before it is handed over is reported like any other."""
    shop = make(engine)

    @app.post("/checkout")
    async def checkout(tasks: Annotated[TracedBackgroundTasks, TaskTracing(broker=shop.broker)]) -> None:
        tasks.add_task(shop.notify, 42)
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        await client.post("/checkout")
    collect_garbage()

    assert measured.lost() == {("tests.engines.test_handover.make.<locals>.notify", "dropped"): 1}
    assert is_child(spans["background_task notify"], spans["POST /checkout"])
    assert shop.ran == []


async def test_a_plain_queue_and_a_def_handler(app: FastAPI, client: httpx.AsyncClient, spans: Spans) -> None:
    """In an opted-in application a `def` handler with a plain queue hands over too, and a dependency before it."""
    shop = make("celery")

    def dependency(tasks: BackgroundTasks) -> None:
        tasks.add_task(shop.notify, 1)

    tracing = Depends(TaskTracing(broker=shop.broker))

    @app.post("/checkout", dependencies=[Depends(dependency), tracing])
    def checkout(tasks: BackgroundTasks) -> None:
        tasks.add_task(shop.notify.delay, 2)

    await client.post("/checkout")

    assert [user_id for user_id, _ in shop.ran] == [1, 2]
    assert [span.name for span in spans.tasks() if span.kind is SpanKind.PRODUCER] == ["send notify"] * 2


async def test_shared_tasks(spans: Spans) -> None:
    """Celery's and Taskiq's shared tasks are of their default broker."""
    ran: list[int] = []
    broker = InMemoryBroker(await_inplace=True)
    async_shared_broker.default_broker(broker)
    app = Celery("shared", broker="memory://")
    app.conf.task_always_eager = True
    app.set_default()

    @async_shared_broker.task("shared")
    async def taskiqs(number: int) -> None:
        ran.append(number)

    def celerys(number: int) -> None:
        ran.append(number)

    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(taskiqs, 1)
    tasks.with_options(broker=app).add_task(shared_task(celerys), 2)
    tasks.add_task(taskiqs, 3)
    await tasks()

    assert ran == [1, 2, 3]
    assert [span.name for span in spans.tasks()] == ["send taskiqs", "send celerys", "send taskiqs"]
    assert taskiqs.labels == {}


@pytest.mark.parametrize("engine", ENGINES)
async def test_no_sdk(engine: str) -> None:
    """Without an SDK a task is handed over all the same."""
    shop = make(engine)
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    assert [user_id for user_id, _ in shop.ran] == [42]


@pytest.mark.parametrize(
    "broker",
    [
        "redis://:secret@localhost",
        make("taskiq").notify,
        make("celery").notify,
        make("dramatiq").notify,
        Mock(spec=InMemoryBroker),
        StubBroker,
    ],
)
def test_what_is_no_broker(anyio_backend: str, broker: Any) -> None:
    """What is no broker is refused where it is written, without a word of what it was."""
    with pytest.raises(TypeError, match="a broker is one of") as raised:
        TaskTracing(broker=broker)
    assert "secret" not in str(raised.value)
    with pytest.raises(TypeError, match="a broker is one of"):
        TracedBackgroundTasks().with_options(broker=broker)


@pytest.mark.parametrize("worker", [TaskiqMiddleware, DramatiqMiddleware, partial(trace_tasks, make("celery").broker)])
def test_a_worker_with_wrong_options(anyio_backend: str, worker: Any) -> None:
    """A worker's options are refused where they are written if they are none."""
    with pytest.raises(TypeError, match="tracing is a TaskTracing, not 42"):
        worker(tracing=42)


def test_what_is_no_app(anyio_backend: str) -> None:
    """`trace_tasks` takes a Celery app only."""
    wrong: Any = "redis://:secret@localhost"
    with pytest.raises(TypeError, match="not an object of type str"):
        trace_tasks(wrong)


def test_an_engine_that_is_not_used(anyio_backend: str) -> None:
    """Who uses no engine imports none, and who uses one imports no other."""
    program = """
import sys
import traced_tasks
from fastapi import FastAPI
used = {"taskiq", "celery", "dramatiq"} & set(sys.modules)
assert not used, used
import dramatiq
from dramatiq.brokers.stub import StubBroker
traced_tasks.TaskTracing(broker=StubBroker())
used = {"taskiq", "celery"} & set(sys.modules)
assert not used, used
"""
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_what_a_function_returns_that_the_worker_awaits(spans: Spans) -> None:
    """Taskiq awaits what a `def` function returns, and the span lasts until that has ended."""
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(TaskiqMiddleware())
    current: list[Any] = []

    async def slow(fails: bool) -> str:
        await asyncio.sleep(0.1)
        current.append(trace.get_current_span().get_span_context())
        if fails:
            raise ValueError
        return "done"

    @broker.task("decorated")
    def decorated(fails: bool) -> Awaitable[str]:
        return slow(fails)

    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(decorated, fails=False)
    tasks.add_task(decorated, fails=True)
    await tasks()

    done, failed = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert current == [done.context, failed.context]
    assert (done.status.status_code, failed.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert all((span.end_time or 0) - (span.start_time or 0) > 0.09e9 for span in (done, failed))


async def test_a_dependency_that_fails(spans: Spans) -> None:
    """A task whose function is not called, since what it depends on fails, has failed."""
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(SimpleRetryMiddleware(), TaskiqMiddleware())

    def user() -> None:
        raise LookupError

    @broker.task("dependent", retry_on_error=True, max_retries=2)
    async def dependent(user: Annotated[None, TaskiqDepends(user)]) -> None: ...

    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(cast(Any, dependent))
    await tasks()

    first, second = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    for span in (first, second):
        assert span.attributes is not None
        assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "LookupError")
        assert is_child(span, spans["send dependent"])


async def test_a_pool_of_processes(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that a pool of processes calls has a span too, from when its message was received."""
    receiver = pooled.broker.receiver
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        monkeypatch.setattr(receiver, "executor", pool)
        monkeypatch.setattr(receiver, "is_process_pool", True)
        tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=pooled.broker))
        tasks.add_task(pooled.pooled, fails=False)
        tasks.add_task(pooled.pooled, fails=True)
        await tasks()

    done, failed = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert (done.status.status_code, failed.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert all(is_child(span, send) for span, send in zip((done, failed), producers(spans), strict=True))


def producers(spans: Spans) -> list[ReadableSpan]:
    return [span for span in spans.tasks() if span.kind is SpanKind.PRODUCER]


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_only_asks_for_something(spans: Spans, caplog: pytest.LogCaptureFixture, engine: str) -> None:
    """A task that only asks for being called once more, or for no result, has not failed, nor has the queue."""
    shop, attempts = make(engine), []

    def ask(*args: Any) -> None:
        attempts.append(args)
        if len(attempts) == 1:
            if engine == "celery":
                raise args[0].retry(countdown=0)
            raise NoResultError if engine == "taskiq" else dramatiq.Retry(delay=1)

    if engine == "celery":
        shop.broker.conf.task_eager_propagates = True
        asking = shop.broker.task(ask, shared=False, bind=True)
    else:
        asking = shop.broker.task(ask) if engine == "taskiq" else dramatiq.actor(broker=shop.broker)(ask)
    tasks = queue(shop)
    tasks.add_task(asking)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    consumers = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert len(consumers) == len(attempts)
    assert all(span.status.is_ok for span in spans.tasks())
    assert [record for record in caplog.records if record.name == "traced_tasks"] == []


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (Ignore(), None),
        (Reject(requeue=True), None),
        (Reject(), "celery.exceptions.Reject"),
        (SystemExit(), "SystemExit"),
    ],
)
async def test_what_a_celery_task_may_raise(spans: Spans, error: BaseException, failed: str | None) -> None:
    """A Celery task that is to be ignored, or put back, has not failed. One that is refused, or exits, has."""
    shop = make("celery")

    @shop.broker.task(shared=False)  # type: ignore[untyped-decorator]
    def raising() -> None:
        raise error

    tasks = queue(shop)
    tasks.add_task(raising)
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit):
            await tasks()
    else:
        await tasks()

    attributes = spans["background_task raising"].attributes
    assert attributes is not None
    assert attributes.get("error.type") == failed


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_hook_of_a_worker(spans: Spans, engine: str) -> None:
    """The hook of a worker's options gets the span that has started there, and the task."""
    seen: list[Any] = []
    tracing = TaskTracing(task_hook=lambda span, task: seen.append((span.get_span_context(), task.args, task.kwargs)))
    shop = make(engine, tracing=tracing)

    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    ((context, args, kwargs),) = seen
    assert context == spans["background_task notify"].context
    assert (list(args), kwargs) == ([42], {})


class BrokenPropagator(TraceContextTextMapPropagator):
    def inject(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("no propagator")

    def extract(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no propagator")


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_propagator_that_fails(
    spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """A task is sent and runs whatever the telemetry does."""
    shop = make(engine)
    monkeypatch.setattr(propagate, "get_global_textmap", BrokenPropagator)
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    assert [user_id for user_id, _ in shop.ran] == [42]
    assert [record.getMessage() for record in caplog.records if record.name == "traced_tasks"] == [
        "The message of the background task tests.engines.test_handover.make.<locals>.notify carries no context.",
        "The message of the background task tests.engines.test_handover.make.<locals>.notify cannot be read.",
    ]


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_clock_that_is_behind(spans: Spans, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """A worker whose clock is behind the application's has a queue time of nothing, and none that is negative."""
    shop = make(engine)
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    monkeypatch.setattr("traced_tasks._worker.time", lambda: 0.0)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    attributes = spans["background_task notify"].attributes
    assert attributes is not None
    assert 0 <= float(str(attributes["background_task.queue.duration"])) < 1


def test_a_direct_call(anyio_backend: str, spans: Spans) -> None:
    """A task that is called, and not sent, has no span, in a worker too."""
    for shop in (make("taskiq"), make("dramatiq"), make("celery")):
        shop.notify(42)
        assert [user_id for user_id, _ in shop.ran] == [42]
    assert spans() == []


async def test_a_call_from_within(spans: Spans) -> None:
    """The span is that of the message's task, also if the task calls another one, or itself."""
    shop = make("taskiq")

    @shop.broker.task("outer")  # type: ignore[untyped-decorator]
    async def outer(again: bool) -> None:
        await shop.async_notify(1)
        if again:
            await outer(again=False)

    tasks = queue(shop)
    tasks.add_task(shop.async_notify, 0)
    tasks.add_task(outer, again=True)
    await tasks()

    consumers = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert [span.name for span in consumers] == ["background_task async_notify", "background_task outer"]
    assert [span.get_span_context() for _, span in shop.ran[1:]] == [consumers[1].context] * 2


@pytest.mark.parametrize("engine", ["celery", "dramatiq"])
def test_trio(anyio_backend: str, spans: Spans, engine: str) -> None:
    """An engine that does not care for event loops is handed a task over under trio too."""
    shop = make(engine)
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)

    trio.run(tasks)
    work_off(shop)

    assert is_child(spans["background_task notify"], spans["send notify"])


@pytest.mark.filterwarnings("ignore::celery.exceptions.CDeprecationWarning")
@pytest.mark.parametrize("queue", ["decorator", "route"])
def test_the_queue_of_a_celery_task(anyio_backend: str, spans: Spans, queue: str) -> None:
    """The span says which queue a Celery task is sent to, whoever has chosen that."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.task_routes = {"routed": "route"}

    @app.task(shared=False, **({"queue": "decorator"} if queue == "decorator" else {"name": "routed"}))  # type: ignore[untyped-decorator]
    def notify() -> None: ...

    tasks: Any = TracedBackgroundTasks(tracing=TaskTracing(broker=app))
    tasks.add_task(notify)
    asyncio.run(tasks())

    attributes = spans["send notify"].attributes
    assert attributes is not None
    assert attributes["messaging.destination.name"] == queue


async def test_an_id_that_cannot_be_made(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A message has an id of its own also if its span could not be started."""
    shop = make("taskiq")
    ids: Iterator[Any] = iter([ValueError(), "second"])

    def make_id() -> str:
        made = next(ids)
        if isinstance(made, Exception):
            raise made
        return str(made)

    shop.broker.id_generator = make_id
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    await tasks()

    assert [user_id for user_id, _ in shop.ran] == [42]
    assert spans["background_task notify"].attributes is not None
    assert (spans["background_task notify"].attributes or {})["messaging.message.id"] == "second"


async def test_a_message_of_a_later_version(spans: Spans) -> None:
    """What a worker does not know in a message is left alone."""
    shop = make("taskiq")
    headers = json.dumps({"propagation_style": "child", "queued_at": 1.0, "colour": "blue"})

    await shop.notify.kicker().with_labels(traced_tasks=headers).kiq(42)

    assert "background_task.queue.duration" in (spans["background_task notify"].attributes or {})


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_task_that_runs_twice_at_once(spans: Spans, engine: str) -> None:
    """Each message of a task that two responses share has an id of its own, and its span says that."""
    shop = make(engine)
    tasks = queue(shop, task_hook=lambda span, task: sleep(0.05))
    tasks.add_task(shop.notify, 42)

    await asyncio.gather(tasks(), tasks())
    await asyncio.to_thread(work_off, shop)

    sent = {str((span.attributes or {})["messaging.message.id"]) for span in producers(spans)}
    received = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert len(sent) == 2
    assert {str((span.attributes or {})["messaging.message.id"]) for span in received} == sent


async def test_celerys_instrumentation_of_a_task_that_runs_here(spans: Spans) -> None:
    """Where Celery sends nothing, its instrumentation makes the span of the task, and ours is that of the send."""
    shop = make("celery")
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)

    with celery_instrumentation(spans):
        await tasks()

    task, send = spans()
    assert (task.name, task.kind) == ("run/tests.engines.test_handover.notify", SpanKind.CONSUMER)
    assert is_child(task, send)
    assert send.name == "send notify"


@pytest.mark.parametrize("record_exception", [True, False])
async def test_a_task_that_fails_in_its_send(
    spans: Spans, caplog: pytest.LogCaptureFixture, record_exception: bool
) -> None:
    """What a task raises that Celery runs in its send is no unconfirmed send, and stays where it is told to."""
    shop = make("celery")
    shop.broker.conf.task_eager_propagates = True
    spans.provider.add_span_processor(SimpleSpanProcessor(BrokenExporter()))

    @shop.broker.task(shared=False)  # type: ignore[untyped-decorator]
    def fail() -> None:
        raise ValueError("secret")

    tasks = queue(shop, record_exception=record_exception)
    tasks.add_task(fail)
    with pytest.raises(ValueError, match="secret"):
        await tasks()

    types = [(span.attributes or {}).get("error.type") for span in (spans["send fail"], spans["background_task fail"])]
    assert types == ["ValueError", "ValueError"]
    (warning,) = [record for record in caplog.records if record.name == "traced_tasks"]
    assert "fail failed with ValueError" in warning.getMessage()
    if not record_exception:
        assert "secret" not in caplog.text


class BrokenExporter(InMemorySpanExporter):
    def export(self, spans: Any) -> Any:
        raise RuntimeError


async def test_a_decorator_of_the_users(spans: Spans) -> None:
    """An actor that runs here runs with all that its function is decorated with."""
    ran: list[str] = []

    def with_loop(func: Any) -> Any:
        @wraps(func)
        def call(*args: Any) -> None:
            ran.append("decorator")
            asyncio.run(func(*args))

        return call

    @dramatiq.actor(broker=make("dramatiq").broker)
    @with_loop
    async def decorated(word: str) -> None:
        ran.append(word)

    tasks: Any = TracedBackgroundTasks()
    tasks.add_task(decorated, "function")
    await tasks()

    assert ran == ["decorator", "function"]


async def test_a_middleware_that_is_there_twice(spans: Spans) -> None:
    """A middleware that is added twice traces once."""
    shop = make("taskiq")
    shop.broker.add_middlewares(TaskiqMiddleware())
    tasks = queue(shop)
    tasks.add_task(shop.notify, 42)
    tasks.add_task(shop.async_notify, 42)
    await tasks()

    assert [span.name for span in spans.tasks() if span.kind is SpanKind.CONSUMER] == [
        "background_task notify",
        "background_task async_notify",
    ]


async def test_a_shared_task_with_another_broker(spans: Spans) -> None:
    """Whether a worker's broker has an instrumentation of its own is asked of that, and not of the task's."""
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(TaskiqMiddleware(), OpenTelemetryMiddleware())

    @async_shared_broker.task("shared_by_all")
    async def shared_by_all() -> None: ...

    await shared_by_all.kicker().with_broker(broker).kiq()

    assert [span.name for span in spans() if span.kind is SpanKind.CONSUMER] == ["execute/shared_by_all"]


async def test_a_time_limit_in_a_hook(spans: Spans, measured: Metrics) -> None:
    """A time limit of Dramatiq's that is over while our code runs leaves nothing behind."""

    def hook(span: Any, task: TracedBackgroundTask) -> None:
        if task.func is limited:
            raise dramatiq.middleware.TimeLimitExceeded

    shop = make("dramatiq", tracing=TaskTracing(task_hook=hook))
    limited = dramatiq.actor(broker=shop.broker, actor_name="limited", max_retries=0)(async_nothing_sync)
    tasks = queue(shop)
    tasks.add_task(limited)
    tasks.add_task(shop.notify, 42)
    await tasks()
    await asyncio.to_thread(work_off, shop)

    consumers = {span.name: span for span in spans.tasks() if span.kind is SpanKind.CONSUMER}
    assert {name: span.status.status_code for name, span in consumers.items()} == {
        "background_task async_nothing_sync": StatusCode.ERROR,
        "background_task notify": StatusCode.UNSET,
    }
    assert set(measured.active().values()) == {0}
    assert all(span.get_span_context() == consumers["background_task notify"].context for _, span in shop.ran)


def async_nothing_sync() -> None: ...


async def test_a_sampler_that_fails_after_a_failed_send(
    spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a send has raised goes on also if its span cannot be made, and nothing stays behind."""
    broker = InMemoryBroker()
    broker.add_middlewares(OpenTelemetryMiddleware())
    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(broker.task(async_nothing), Card)
    monkeypatch.setattr("traced_tasks._handover.start_span", Mock(side_effect=RuntimeError("sampler")))

    with pytest.raises(ValueError, match="Cannot serialize types"):
        await tasks()

    assert "async_nothing could not be traced" in caplog.text
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_current_app(anyio_backend: str) -> None:
    """Celery's `current_app` may be another one each time, and is refused."""
    with pytest.raises(TypeError, match="trace_tasks takes a Celery app"):
        trace_tasks(current_app)


async def test_a_middleware_that_makes_a_copy(spans: Spans) -> None:
    """A task whose dependency fails has failed, also if another middleware has replaced its message."""

    class Copying(TaskiqMiddleware_):
        def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
            return message.model_copy()

    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(TaskiqMiddleware(), Copying())

    def user() -> None:
        raise LookupError

    @broker.task("dependent_too")
    async def dependent(user: Annotated[None, TaskiqDepends(user)]) -> None: ...

    tasks = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    tasks.add_task(cast(Any, dependent))
    await tasks()

    (span,) = [span for span in spans.tasks() if span.kind is SpanKind.CONSUMER]
    assert (span.attributes or {})["error.type"] == "LookupError"


def test_an_app_that_cannot_be_configured(anyio_backend: str) -> None:
    """A Celery task whose app cannot be configured is refused where it is added, with Celery's own error."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object("tests.engines.no_such_module")
    notify = app.task(shared=False)(async_nothing_sync)

    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        TracedBackgroundTasks(tracing=TaskTracing(broker=app)).add_task(notify)


async def test_a_failed_send_beside_celerys_instrumentation(spans: Spans) -> None:
    """A send that fails has one span with Celery's own instrumentation too."""
    shop = make("celery", broken=True)
    tasks = queue(shop)
    shop.broker.set_default()  # in a thread, the instrumentation looks for the task in the default app
    tasks.add_task(shop.notify, 42)

    with celery_instrumentation(spans), pytest.raises(OperationalError):
        await tasks()

    (send,) = spans()
    assert (send.kind, (send.attributes or {})["error.type"]) == (SpanKind.PRODUCER, "unconfirmed")


class Request:
    """What the main process of a Celery worker knows of a task."""

    def __init__(self, task: Any) -> None:
        self.task, self.id, self.args = task, "1", (42,)
        self.kwargs: dict[str, Any] = {}
        self.request_dict: dict[str, Any] = {}
        self.delivery_info, self.worker_pid, self.time_start = None, 0, None


@pytest.mark.parametrize(("terminated", "readable"), [(False, True), (True, True), (True, False)])
def test_a_task_that_is_revoked(
    anyio_backend: str, spans: Spans, monkeypatch: pytest.MonkeyPatch, terminated: bool, readable: bool
) -> None:
    """A task that is revoked before it starts has no span, nor has one whose message cannot be read."""
    shop = make("celery")
    request = Request(shop.notify)
    if not readable:
        monkeypatch.setattr(propagate, "get_global_textmap", BrokenPropagator)

    signals.task_received.send(sender=None, request=request)
    signals.task_revoked.send(sender=shop.notify, request=request, terminated=terminated, signum=15, expired=False)

    assert len(spans()) == (terminated and readable)


async def test_an_error_of_nothing(spans: Spans) -> None:
    """An error that comes without a message harms nothing."""
    result: TaskiqResult[None] = TaskiqResult(is_err=True, return_value=None, execution_time=0)
    message = TaskiqMessage(task_id="1", task_name="1", labels={}, args=[], kwargs={})

    TaskiqMiddleware().on_error(message, result, ValueError())
    TaskiqMiddleware().post_execute(message, result)

    assert spans() == []


async def test_a_worker_that_keeps_a_secret(spans: Spans) -> None:
    """With `record_exception=False` in the worker's options no exception is recorded there."""
    shop = make("taskiq", tracing=TaskTracing(record_exception=False))

    @shop.broker.task("secret")  # type: ignore[untyped-decorator]
    async def fail() -> None:
        raise ValueError("secret")

    tasks = queue(shop)
    tasks.add_task(fail)
    await tasks()

    assert spans["background_task fail"].events == ()
    assert (spans["background_task fail"].attributes or {})["error.type"] == "ValueError"
