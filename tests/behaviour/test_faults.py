"""Whatever breaks, the application does what it would have done with a plain queue, and what can be told is told."""

import asyncio
import itertools
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from httpx import AsyncClient
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import StatusCode
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message

from tests.conftest import Spans, collect_garbage
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks

QUEUES = pytest.mark.parametrize("queue", [BackgroundTasks, TracedBackgroundTasks], ids=["plain", "traced"])
"""The same application with FastAPI's queue and with ours."""


def told(spans: Spans) -> list[tuple[str, object]]:
    """The name of each task's span, in the order of their ends, and its `error.type`."""
    return [
        (span.name.removeprefix("background_task "), (span.attributes or {}).get("error.type"))
        for span in spans.tasks()
    ]


async def outcome(call: Callable[[], Awaitable[object]]) -> BaseException | None:
    """What a call raises."""
    try:
        await call()
    except BaseException as error:
        return error
    return None


class Exporter(SpanExporter):
    """An exporter that does something else first."""

    def __init__(self, first: Callable[[], object]) -> None:
        self.first = first
        self.names: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.first()
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS


def fail() -> None:
    raise ValueError("card 4242 refused")


def notify() -> None: ...


@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
async def test_an_exporter_that_raises(
    app: FastAPI, client: AsyncClient, spans: Spans, processor: Callable[[SpanExporter], Any]
) -> None:
    """An exporter that raises costs its own spans; request, tasks and the other exporters go on."""
    spans.provider.add_span_processor(processor(Exporter(fail)))
    ran: list[int] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, 1)
        tasks.add_task(ran.append, 2)

    assert (await client.get("/")).status_code == 200
    spans.provider.force_flush()

    assert ran == [1, 2]
    assert told(spans) == [("list.append", None), ("list.append", None)]


async def test_an_exporter_that_hangs(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """An exporter that hangs behind a batch processor is waited for by nobody, and gets its spans when it goes on."""
    go_on = threading.Event()
    exporter = Exporter(lambda: go_on.wait(10))
    spans.provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1))
    ran: list[int] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, 1)

    for _ in range(3):
        await client.get("/")
    assert ran == [1, 1, 1]
    assert exporter.names == []
    go_on.set()
    spans.provider.force_flush()

    assert exporter.names.count("background_task list.append") == 3


async def test_an_exporter_that_hangs_on_the_spot(spans: Spans) -> None:
    """An exporter that hangs behind a simple processor holds up the queue behind the task, and loses nothing."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        go_on.wait(10)

    exporter = Exporter(hang)
    spans.provider.add_span_processor(SimpleSpanProcessor(exporter))
    ran: list[int] = []
    tasks = TracedBackgroundTasks()
    tasks.add_task(ran.append, 1)
    tasks.add_task(ran.append, 2)
    thread = threading.Thread(target=lambda: anyio.run(tasks))

    thread.start()
    assert await anyio.to_thread.run_sync(hangs.wait, 10)
    assert ran == [1]
    go_on.set()
    await anyio.to_thread.run_sync(thread.join, 10)

    assert ran == [1, 2]
    assert exporter.names == ["background_task list.append"] * 2


async def test_a_slow_exporter_and_a_full_queue(spans: Spans) -> None:
    """A batch processor whose queue is full drops spans and no tasks."""
    go_on = threading.Event()
    exporter = Exporter(lambda: go_on.wait(10))
    spans.provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=2, max_export_batch_size=1))
    ran: list[int] = []
    tasks = TracedBackgroundTasks()
    for number in range(20):
        tasks.add_task(ran.append, number)

    await tasks()
    go_on.set()
    spans.provider.force_flush()

    assert ran == list(range(20))
    assert 0 < len(exporter.names) < 20


@pytest.mark.parametrize("moment", ["before add_task", "before the task", "in the task"])
async def test_a_provider_that_is_shut_down(spans: Spans, caplog: pytest.LogCaptureFixture, moment: str) -> None:
    """Tasks run on, and fail on, when their provider has been shut down; the loss of one is still warned of."""
    ran: list[int] = []

    def run(number: int) -> None:
        if moment == "in the task":
            spans.provider.shutdown()
        ran.append(number)

    if moment == "before add_task":
        spans.provider.shutdown()
    tasks = TracedBackgroundTasks()
    tasks.add_task(run, 1)
    tasks.add_task(fail)
    tasks.add_task(notify)
    if moment == "before the task":
        spans.provider.shutdown()

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert ran == [1]
    assert "notify was skipped" in caplog.text
    assert [record.levelno for record in caplog.records if record.name == "traced_tasks"] == [logging.WARNING] * 2


class BrokenSampler(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise RuntimeError("sampler broke")

    def get_description(self) -> str:
        return "BrokenSampler"


class BrokenIds(IdGenerator):
    def generate_span_id(self) -> int:
        raise RuntimeError("ids broke")

    def generate_trace_id(self) -> int:
        raise RuntimeError("ids broke")


class BrokenPropagator:
    fields: set[str] = set()  # noqa: RUF012

    def extract(self, *args: Any, **kwargs: Any) -> context.Context:
        raise RuntimeError("propagator broke")

    def inject(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("propagator broke")


def broken_providers() -> list[TracerProvider]:
    class NoTracer(TracerProvider):
        def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
            raise RuntimeError("provider broke")

    return [TracerProvider(sampler=BrokenSampler()), TracerProvider(id_generator=BrokenIds()), NoTracer()]


@pytest.mark.parametrize("provider", broken_providers(), ids=["sampler", "id generator", "provider"])
@pytest.mark.parametrize("style", ["child", "link", "none"])
async def test_a_span_that_cannot_start(
    spans: Spans, caplog: pytest.LogCaptureFixture, provider: TracerProvider, style: Any
) -> None:
    """With a sampler, an id generator or a provider that raises, tasks run, fail and are lost as ever."""
    ran: list[object] = []

    def look() -> None:
        ran.append(trace.get_current_span())

    tasks = TracedBackgroundTasks(tracing=TaskTracing(propagation_style=style, tracer_provider=provider))
    with trace.get_tracer("mine").start_as_current_span("request") as request:
        tasks.add_task(look)
        tasks.add_task(fail)
        tasks.add_task(notify)
    before = context.get_current()

    with pytest.raises(ValueError, match="4242") as caught:
        await tasks()

    assert ran == [request]
    assert caught.value.__context__ is None
    assert context.get_current() == before
    prefix = "The background task tests.behaviour.test_faults."
    assert [record.getMessage().removeprefix(prefix).partition(" after ")[0] for record in caplog.records] == [
        "test_a_span_that_cannot_start.<locals>.look runs without a span, which could not be started.",
        "fail runs without a span, which could not be started.",
        "fail failed with ValueError",
        "The loss of the background task tests.behaviour.test_faults.notify could not be traced.",
        "notify was skipped: tests.behaviour.test_faults.fail, before it in the queue, failed with ValueError.",
    ]


async def test_a_propagator_that_raises(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task needs no propagator: the context goes with it as it is."""
    monkeypatch.setattr(propagate, "propagator", BrokenPropagator())
    tasks = TracedBackgroundTasks()
    tasks.add_task(notify)

    await tasks()

    assert told(spans) == [("notify", None)]


async def test_a_log_handler_that_raises(spans: Spans) -> None:
    """A log filter that raises while a loss is reported does not take the place of the task's exception."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("filter broke")

    broken = Broken()
    tasks = TracedBackgroundTasks()
    tasks.add_task(fail)
    tasks.add_task(notify)
    logging.getLogger("traced_tasks").addFilter(broken)
    try:
        error = await outcome(tasks)
    finally:
        logging.getLogger("traced_tasks").removeFilter(broken)

    assert isinstance(error, ValueError)
    assert told(spans) == [("fail", "ValueError"), ("notify", "skipped")]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit], ids=lambda error: error.__name__)
async def test_a_hook_that_ends_the_program(spans: Spans, error: type[BaseException]) -> None:
    """What a hook raises that is no `Exception` goes on, and leaves neither an open span nor a context behind."""

    def stop(span: trace.Span, task: TracedBackgroundTask) -> None:
        raise error

    before = context.get_current()

    async def async_notify() -> None: ...

    tasks = TracedBackgroundTasks(tracing=TaskTracing(task_hook=stop))
    tasks.add_task(async_notify)

    assert type(await outcome(tasks)) is error

    assert context.get_current() == before
    assert told(spans) == [("async_notify", error.__name__)]


def checkpoints(order: list[str]) -> Callable[[Any], None]:
    """A program with every kind of await point: in tasks, in their cleanup, in worker threads, in nested groups."""

    async def steps(name: str) -> None:
        order.append(f"{name} starts")
        try:
            await anyio.lowlevel.checkpoint()
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.lowlevel.checkpoint)
            order.append(f"{name} ends")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            order.append(f"{name} cleans up")

    def in_a_thread() -> None:
        order.append("thread")

    async def swallow() -> None:
        with suppress(BaseException):
            await anyio.lowlevel.checkpoint()
        order.append("swallowed")

    def queue(tasks: Any) -> None:
        tasks.add_task(steps, "first")
        tasks.add_task(in_a_thread)
        tasks.add_task(swallow)
        tasks.add_task(steps, "last")

    return queue


class Interrupt:
    """Await something, and interrupt it at its n-th await point."""

    def __init__(self, awaitable: Awaitable[Any], n: int, interrupt: Callable[[], object]) -> None:
        self.awaitable = awaitable
        self.n = n
        self.interrupt = interrupt
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        inner: Any = self.awaitable.__await__()
        resume, value = inner.send, None
        for n in itertools.count(1):
            try:
                waits_for = resume(value)
            except StopIteration as done:
                return done.value
            if n == self.n:
                self.reached = True
                self.interrupt()
            try:
                resume, value = inner.send, (yield waits_for)
            except BaseException as error:
                resume, value = inner.throw, error


def check_story(order: list[str], spans: Spans, cancelled: bool) -> None:
    """Check that the spans tell what the tasks did: some ended, at most one was cut short, the others never started."""
    story = told(spans)
    assert [name for name, _ in story] == ["steps", "in_a_thread", "swallow", "steps"]
    fates = [str(error).rpartition(".")[2] for _, error in story]
    ended, skipped = fates.count("None"), fates.count("skipped")
    cut = [fate for fate in fates if fate in ("CancelledError", "Cancelled")]
    assert fates == ["None"] * ended + cut + ["skipped"] * skipped
    assert len(cut) <= 1
    assert cancelled == (ended < 4)
    starts = [line for line in order if line in ("first starts", "thread", "swallowed", "last starts")]
    assert ended <= len(starts) <= 4 - skipped


async def test_cancellation_at_every_await_point(spans: Spans) -> None:
    """A scope that is cancelled at any await point stops both queues at the same line, and the spans say so."""
    for n in range(100):
        ran: list[tuple[list[str], bool]] = []
        for tasks in (BackgroundTasks(), TracedBackgroundTasks()):
            order: list[str] = []
            checkpoints(order)(tasks)
            before = context.get_current()
            with anyio.CancelScope() as scope:
                interrupt = Interrupt(tasks(), n, scope.cancel)
                if n == 0:
                    scope.cancel()
                await interrupt
            assert context.get_current() == before
            ran.append((order, scope.cancelled_caught))

        plain, traced = ran
        assert traced == plain
        check_story(order, spans, scope.cancelled_caught)
        spans.exporter.clear()
        if n and not interrupt.reached:
            assert n > 8
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_cancellation_at_every_await_point(spans: Spans) -> None:
    """The same goes for asyncio's own `Task.cancel`, with which a server stops."""
    for n in range(1, 100):
        ran: list[tuple[list[str], bool]] = []
        for tasks in (BackgroundTasks(), TracedBackgroundTasks()):
            order: list[str] = []
            checkpoints(order)(tasks)

            async def run(tasks: BackgroundTasks = tasks, n: int = n) -> bool:
                current = asyncio.current_task()
                assert current is not None
                interrupt = Interrupt(tasks(), n, current.cancel)
                await interrupt
                return interrupt.reached

            result = (await asyncio.gather(asyncio.create_task(run()), return_exceptions=True))[0]
            ran.append((order, isinstance(result, asyncio.CancelledError)))

        plain, traced = ran
        assert traced == plain
        check_story(order, spans, isinstance(result, asyncio.CancelledError))
        spans.exporter.clear()
        if result is False:
            assert n > 8
            return
    raise AssertionError("it never ends")


async def test_a_cancellation_that_a_task_swallows(spans: Spans) -> None:
    """A task that goes on after its cancellation has no error, and the next await point is what is cut short."""
    order: list[str] = []

    async def stubborn() -> None:
        with suppress(BaseException):
            await anyio.sleep_forever()
        order.append("stubborn")

    for tasks in (BackgroundTasks(), TracedBackgroundTasks()):
        tasks.add_task(stubborn)
        tasks.add_task(anyio.lowlevel.checkpoint)
        tasks.add_task(order.append, "last")
        with anyio.CancelScope() as scope:
            await Interrupt(tasks(), 1, scope.cancel)
        assert scope.cancelled_caught

    assert order == ["stubborn", "stubborn"]
    names = [name.rpartition(".")[2] for name, _ in told(spans)]
    errors = [error for _, error in told(spans)]
    assert names == ["stubborn", "checkpoint", "append"]
    assert (errors[0], errors[2]) == (None, "skipped")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ERRORS = [
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    ExceptionGroup("two", [ValueError("one"), KeyError("two")]),
    BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError("one")]),
    asyncio.CancelledError("by hand"),
    StopIteration(1),
    StopAsyncIteration(1),
    UnspeakableError(),
    RecursionError("deep"),
    MemoryError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    OSError(28, "no space"),
    AssertionError(),
]


RAISES = [
    pytest.param(error, sync, id=f"{type(error).__name__}-{'sync' if sync else 'async'}")
    for error in ERRORS
    for sync in (True, False)
    if not (sync and isinstance(error, GeneratorExit))  # which has a test of its own
]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_generator_exit_from_a_thread(spans: Spans) -> None:
    """A `GeneratorExit` of a sync task, which asyncio takes for its own end of a coroutine, ends it as a plain one."""

    def raise_it() -> None:
        raise GeneratorExit

    for tasks in (BackgroundTasks(), TracedBackgroundTasks()):
        tasks.add_task(raise_it)
        tasks.add_task(notify)
        (raised,) = await asyncio.gather(asyncio.create_task(tasks()), return_exceptions=True)
        assert type(raised) is GeneratorExit

    assert told(spans) == [("raise_it", "GeneratorExit"), ("notify", "skipped")]


@pytest.mark.parametrize(("error", "sync"), RAISES)
async def test_a_task_that_raises(spans: Spans, error: BaseException, sync: bool) -> None:
    """Whatever a task raises, the queue raises what a plain one does, and its span and the next task's say so."""
    ran: list[int] = []

    def raise_it() -> None:
        raise error

    async def async_raise_it() -> None:
        raise error

    raised = []
    for tasks in (BackgroundTasks(), TracedBackgroundTasks()):
        error.__context__ = error.__cause__ = None
        tasks.add_task(raise_it if sync else async_raise_it)
        tasks.add_task(ran.append, 1)
        raised.append(await outcome(tasks))

    plain, traced = raised
    assert plain is not None
    assert traced is not None
    assert (type(traced), traced.args) == (type(plain), plain.args)
    assert (traced is error) == (plain is error)
    assert (traced.__context__, traced.__cause__) == (plain.__context__, plain.__cause__)
    assert ran == []
    (name, error_type), lost = told(spans)
    assert name == ("raise_it" if sync else "async_raise_it")
    # What it raised itself, also where anyio makes something else of it.
    assert str(error_type).endswith(type(error if sync else traced).__name__)
    assert lost == ("list.append", "skipped")
    assert all(span.status.status_code is StatusCode.ERROR for span in spans.tasks())
    if not isinstance(error, UnspeakableError):
        assert [event.name for event in spans.tasks()[0].events] == ["exception"]


async def test_an_exception_without_words(spans: Spans) -> None:
    """Of an exception whose `str()` raises, the span still has the class and the stack trace."""

    def raise_it() -> None:
        raise UnspeakableError

    with pytest.raises(UnspeakableError):
        await TracedBackgroundTask(raise_it)()

    (span,) = spans()
    assert span.status.description == "UnspeakableError"
    (event,) = span.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "tests.behaviour.test_faults.UnspeakableError"
    assert "in raise_it" in str(event.attributes["exception.stacktrace"])


@pytest.mark.parametrize(("error", "sync"), RAISES)
async def test_a_task_that_raises_where_others_go_on(spans: Spans, error: BaseException, sync: bool) -> None:
    """With `on_error="continue"` an `Exception` of any sort comes in the group, and what is none ends the queue."""
    ran: list[int] = []

    def raise_it() -> None:
        raise error

    async def async_raise_it() -> None:
        raise error

    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
    tasks.add_task(raise_it if sync else async_raise_it)
    tasks.add_task(ran.append, 1)

    raised = await outcome(tasks)

    if isinstance(error, Exception):
        assert type(raised) is ExceptionGroup
        assert raised.message == "background tasks failed"
        assert len(raised.exceptions) == 1
        assert ran == [1]
    else:
        assert raised is error
        assert ran == []


@QUEUES
async def test_a_task_that_adds_tasks_and_fails(spans: Spans, queue: Callable[[], Any]) -> None:
    """What a task added to the running queue before it failed is not run, and skipped like all behind it."""
    ran: list[str] = []
    tasks = queue()

    def add() -> None:
        tasks.add_task(ran.append, "added")
        fail()

    tasks.add_task(add)
    tasks.add_task(ran.append, "behind")

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert ran == []
    if queue is not BackgroundTasks:
        assert told(spans) == [("add", "ValueError"), ("list.append", "skipped"), ("list.append", "skipped")]


@QUEUES
async def test_a_chain_of_tasks(spans: Spans, queue: Callable[[], Any]) -> None:
    """Tasks that each add the next to the running queue run all, each in the span of the one before."""
    ran: list[int] = []
    tasks = queue()

    async def step(number: int) -> None:
        ran.append(number)
        if number < 20:
            tasks.add_task(step, number + 1)

    tasks.add_task(step, 1)
    await tasks()

    assert ran == list(range(1, 21))
    for parent, child in zip(spans.tasks(), spans.tasks()[1:], strict=False):
        assert child.parent == parent.context


@QUEUES
async def test_a_queue_that_has_run(spans: Spans, queue: Callable[[], Any]) -> None:
    """What is added to a queue that has run is not run, and dropped with the queue."""
    ran: list[int] = []
    tasks = queue()
    await tasks()
    tasks.add_task(ran.append, 1)
    del tasks
    collect_garbage()

    assert ran == []
    if queue is not BackgroundTasks:
        assert told(spans) == [("list.append", "dropped")]


class GoneError(OSError):
    """What a server raises of `send` when nobody is there."""


async def request(app: ASGIApp, send: Callable[[Message], Awaitable[None]], version: str, gone: anyio.Event) -> None:
    """Send a GET as a server of one version of ASGI does, and report the client as gone when it is."""

    async def receive() -> Message:
        if not received:
            received.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    received: list[bool] = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": version},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)


class PassOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("goes_at", [0, 1, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["plain", "streaming"])
@pytest.mark.parametrize("middleware", [0, 1])
@pytest.mark.parametrize("version", ["2.3", "2.4"])
async def test_a_client_that_disconnects(
    spans: Spans, anyio_backend: str, version: str, middleware: int, streaming: bool, goes_at: int
) -> None:
    """A client that goes before, in the middle of or behind the answer costs the same tasks as with a plain queue."""
    fates: list[tuple[list[str], str]] = []
    for queue in (BackgroundTasks, TracedBackgroundTasks):
        app = FastAPI()
        for _ in range(middleware):
            app.add_middleware(PassOn)
        ran: list[str] = []
        gone = anyio.Event()
        sent: list[Message] = []

        async def first(ran: list[str] = ran) -> None:
            await anyio.lowlevel.checkpoint()
            ran.append("first")

        def second(ran: list[str] = ran) -> None:
            ran.append("second")

        async def chunks() -> AsyncIterator[str]:
            for _ in range(3):
                yield "chunk"
                await anyio.lowlevel.checkpoint()

        @app.get("/")
        async def handler(tasks: queue, first: Any = first, second: Any = second) -> Any:  # type: ignore[valid-type]
            tasks.add_task(first)  # type: ignore[attr-defined]
            tasks.add_task(second)  # type: ignore[attr-defined]
            return StreamingResponse(chunks()) if streaming else {}

        async def send(message: Message, sent: list[Message] = sent, gone: anyio.Event = gone) -> None:
            if len(sent) == goes_at:
                gone.set()
            sent.append(message)
            await anyio.lowlevel.checkpoint()
            if gone.is_set() and version == "2.4":
                raise GoneError

        error = await outcome(lambda app=app, send=send, gone=gone: request(app, send, version, gone))  # type: ignore[misc]
        fates.append((ran, type(error).__name__))
        error = None
        del app, handler, send, first, second
    collect_garbage()

    plain, traced = fates
    if anyio_backend == "asyncio":  # trio mixes up on purpose what happens at once
        assert traced == plain
    assert [name for name, error in told(spans) if error is None] == traced[0]
    assert sorted(name for name, _ in told(spans)) == ["first", "second"]


def run_program(program: str) -> tuple[int, list[str], str]:
    """The exit code of a program, the lines that it printed, and what it complained of."""
    done = subprocess.run(
        # Python 3.12 warns of a fork beside the thread of the batch processor, and 3.11 of opentelemetry-api 1.42.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


FORKING = """
    import asyncio, os, sys
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
    from traced_tasks import TracedBackgroundTasks

    class Lines(SpanExporter):
        def export(self, spans):
            for span in spans:
                who = "parent" if os.getpid() == parent else "child"
                os.write(1, f"{who} {span.name} {span.attributes.get('error.type')}\\n".encode())

    parent = os.getpid()
    provider = TracerProvider()
    provider.add_span_processor({processor}(Lines()))
    trace.set_tracer_provider(provider)

    def notify(): ...

    def run(*names):
        tasks = TracedBackgroundTasks()
        for name in names:
            tasks.with_options(span_name=name).add_task(notify)
        asyncio.run(tasks())
"""


@pytest.mark.parametrize("processor", ["SimpleSpanProcessor", "BatchSpanProcessor"])
def test_a_fork_after_import(processor: str) -> None:
    """Behind `os.fork`, child and parent trace their own tasks, and each once."""
    code, lines, complaints = run_program(
        textwrap.dedent(FORKING.replace("{processor}", processor))
        + textwrap.dedent("""
            run("before")
            provider.force_flush()
            pid = os.fork()
            if pid == 0:
                run("one", "two")
                provider.force_flush()
                os._exit(0)
            run("three")
            assert os.waitpid(pid, 0)[1] == 0
            provider.force_flush()
        """),
    )

    assert (code, complaints) == (0, "")
    assert sorted(lines) == ["child one None", "child two None", "parent before None", "parent three None"]


def test_a_fork_in_a_task_that_goes_on() -> None:
    """A task that forks and goes on in both processes ends in both, and what runs is counted right in both."""
    code, lines, complaints = run_program("""
        import os
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from traced_tasks import TaskTracing, TracedBackgroundTasks

        async def fork():
            pids.append(os.fork())

        pids, reader = [], InMemoryMetricReader()
        tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=MeterProvider([reader])))
        tasks.add_task(fork)
        try:
            tasks().send(None)  # without an event loop: since Python 3.14 asyncio's complains in the child
        except StopIteration:
            pass
        if pids[0]:
            os.waitpid(pids[0], 0)
        scope = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
        counts = [p.value for m in scope.metrics if m.name == "background_task.active" for p in m.data.data_points]
        print("parent" if pids[0] else "child", counts, flush=True)
    """)

    assert (code, complaints) == (0, "")
    assert lines == ["child [0]", "parent [0]"]


@pytest.mark.parametrize("leave", ["os._exit(0)", "sys.exit(0)", "del tasks"])
def test_a_fork_with_tasks_in_the_queue(leave: str) -> None:
    """The tasks that were queued in the parent are not the child's to lose: it leaves in silence, and they run once."""
    code, lines, complaints = run_program(
        textwrap.dedent(FORKING.replace("{processor}", "SimpleSpanProcessor"))
        + textwrap.dedent(f"""
            import gc

            def handler():
                tasks = TracedBackgroundTasks()
                tasks.with_options(span_name="queued").add_task(notify)
                tasks.myself = tasks
                pid = os.fork()
                if pid == 0:
                    {leave}
                    return
                assert os.waitpid(pid, 0)[1] == 0
                asyncio.run(tasks())

            handler()
            if os.getpid() != parent:
                gc.collect()
                run("the child's own")
        """)
    )

    assert (code, complaints) == (0, "")
    own = [] if "exit" in leave else ["child the child's own None"]
    assert lines == [*own, "parent queued None"]


def test_a_fork_in_a_task() -> None:
    """A task that forks, as `multiprocessing` does, has one span, and so has the task behind it."""
    code, lines, complaints = run_program(
        textwrap.dedent(FORKING.replace("{processor}", "BatchSpanProcessor"))
        + textwrap.dedent("""
            import multiprocessing

            async def fork():
                process = multiprocessing.get_context("fork").Process(target=os.write, args=(1, b"work\\n"))
                process.start()
                process.join()
                assert process.exitcode == 0

            tasks = TracedBackgroundTasks()
            tasks.with_options(span_name="fork").add_task(fork)
            tasks.with_options(span_name="behind").add_task(notify)
            asyncio.run(tasks())
            provider.shutdown()
        """),
    )

    assert (code, complaints) == (0, "")
    assert lines == ["work", "parent fork None", "parent behind None"]
