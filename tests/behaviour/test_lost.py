"""A task that never runs is seen: once, and why."""

import contextvars
import copy
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from time import time_ns
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse
from httpx import AsyncClient
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode
from starlette.background import BackgroundTask
from starlette.types import Message

from tests.conftest import Metrics, Spans, collect_garbage, is_child
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks, _lost
from traced_tasks._lost import Reporter
from traced_tasks._options import OnError
from traced_tasks.testing import record_tasks

LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]


def notify(*args: object) -> None: ...


def fail() -> None:
    raise ValueError("card 4242 refused")


async def worker_threads_let_go() -> None:
    """Wait until a worker thread has forgotten its last job, which it does a moment after it has reported it."""
    await anyio.to_thread.run_sync(notify)


@pytest.fixture(autouse=True)
def _earlier_garbage() -> None:
    gc.collect()


def points(reader: InMemoryMetricReader, name: str) -> dict[tuple[Any, Any], Any]:
    """The values of a counter, by function and error."""
    data: Any = reader.get_metrics_data()
    return {
        (point.attributes["code.function.name"], point.attributes["error.type"]): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    }


def lost(spans: Spans) -> dict[str, str]:
    """What was lost, by the name of the span, and how."""
    return {
        span.name.removeprefix("background_task "): str((span.attributes or {})["error.type"])
        for span in spans.tasks()
        if (span.attributes or {}).get("error.type") in ("skipped", "dropped")
    }


async def test_an_earlier_task_failed(
    app: FastAPI, client: AsyncClient, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """The tasks behind a failing one are skipped: each has a span from `add_task` on, and a warning that says why."""
    before = time_ns()

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        with trace.get_tracer("mine").start_as_current_span("step"):
            tasks.add_task(fail)
            tasks.add_task(notify)
            tasks.add_task(print)

    with pytest.raises(ValueError, match="4242"):
        await client.get("/")

    assert lost(spans) == {"notify": "skipped", "print": "skipped"}
    span = spans["background_task notify"]
    assert is_child(span, spans["step"])
    assert span.status.status_code is StatusCode.ERROR
    assert span.start_time is not None
    assert span.end_time is not None
    failed = spans["background_task fail"]
    assert failed.start_time is not None
    assert before < span.start_time < failed.start_time < span.end_time
    assert (span.attributes or {})["code.function.name"] == "tests.behaviour.test_lost.notify"
    reason = "tests.behaviour.test_lost.fail, before it in the queue, failed with ValueError"
    assert span.status.description == reason
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records[1:]] == [
        ("traced_tasks", logging.WARNING, f"The background task {name} was skipped: {reason}.")
        for name in ("tests.behaviour.test_lost.notify", "builtins.print")
    ]


async def test_an_earlier_task_was_cancelled(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """The tasks behind one that is cancelled are skipped, and the cancellation goes on."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(anyio.sleep_forever)
    tasks.add_task(notify)

    with anyio.move_on_after(0.01) as scope:
        await tasks()

    assert scope.cancelled_caught
    assert lost(spans) == {"notify": "skipped"}
    assert "notify was skipped: its queue was cut short by" in caplog.text


async def test_http_exception(
    app: FastAPI, client: AsyncClient, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises `HTTPException` after `add_task` drops its tasks, which is seen with the response."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        raise HTTPException(402)

    assert (await client.get("/")).status_code == 402

    assert lost(spans) == {"notify": "dropped"}
    trace_id = spans["background_task notify"].context.trace_id
    assert trace_id in [span.context.trace_id for span in spans() if span.name == "GET /"]
    assert "notify was dropped: nothing ran it. For example, the handler raised after add_task," in caplog.text


async def test_http_exception_in_a_sync_handler(app: FastAPI, client: AsyncClient) -> None:
    """The same goes for a sync handler, as soon as Python has thrown away what its worker thread raised."""

    @app.get("/")
    def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        raise HTTPException(402)

    with record_tasks(allow_lost=True) as tasks:
        assert (await client.get("/")).status_code == 402
        await anyio.lowlevel.checkpoint()  # the event loop refers to what the thread has raised, until its next step

    assert tasks.one(notify).outcome == "dropped"


@pytest.mark.parametrize("sync", [True, False])
async def test_an_unhandled_exception(app: FastAPI, client: AsyncClient, sync: bool) -> None:
    """A handler that crashes after `add_task` drops its tasks, which is seen when Python has thrown them away."""

    @app.get("/sync")
    def sync_handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        fail()

    @app.get("/async")
    async def async_handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        fail()

    with record_tasks(allow_lost=True) as tasks:
        with pytest.raises(ValueError, match="4242"):
            await client.get("/sync" if sync else "/async")
        await anyio.lowlevel.checkpoint()  # the event loop refers to what the thread has raised, until its next step

    assert tasks.one(notify).outcome == "dropped"


async def test_a_response_with_its_own_background(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """The tasks of a request are dropped when its response has a background of its own, which runs."""
    ran: list[int] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> JSONResponse:
        tasks.add_task(notify)
        return JSONResponse({}, background=BackgroundTask(ran.append, 1))

    await client.get("/")

    assert ran == [1]
    assert lost(spans) == {"notify": "dropped"}


async def test_a_websocket(app: FastAPI) -> None:
    """The tasks of a websocket route are dropped: there is no response that they could follow."""

    @app.websocket("/")
    async def handler(websocket: WebSocket, tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        await websocket.accept()
        await websocket.close()

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None: ...

    with record_tasks(allow_lost=True) as tasks:
        await app({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, receive, send)

    assert tasks.one(notify).outcome == "dropped"


async def test_a_queue_by_hand(spans: Spans) -> None:
    """Tasks of a queue that is given to no response are dropped, and so is a single task."""
    tasks = TracedBackgroundTasks([BackgroundTask(print)])
    tasks.add_task(notify)
    task = TracedBackgroundTask(repr, 1)

    del tasks, task

    assert lost(spans) == {"print": "dropped", "notify": "dropped", "repr": "dropped"}


async def test_a_plain_task_of_a_traced_queue(app: FastAPI, client: AsyncClient) -> None:
    """What a plain parameter queued, before the adoption or after it, is seen when it is lost."""

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(notify)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks, plain: BackgroundTasks) -> None:
        plain.add_task(print)
        raise HTTPException(402)

    with record_tasks(allow_lost=True) as tasks:
        await client.get("/")

    assert [(task.func, task.outcome) for task in tasks] == [(notify, "dropped"), (print, "dropped")]


async def test_a_queue_in_the_queue(spans: Spans) -> None:
    """The tasks of a queue behind a failing task are skipped, those that were put straight into the list too."""
    inner = TracedBackgroundTasks()
    inner.add_task(notify)
    tasks = TracedBackgroundTasks()
    tasks.add_task(fail)
    tasks.tasks += [inner, BackgroundTask(print)]

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert lost(spans) == {"notify": "skipped", "print": "skipped"}


async def test_a_failing_queue_in_the_queue(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task behind a queue with a failing task is skipped, too."""
    inner = TracedBackgroundTasks()
    inner.add_task(fail)
    tasks = TracedBackgroundTasks([inner])
    tasks.add_task(notify)

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert lost(spans) == {"notify": "skipped"}
    assert "notify was skipped: a queue, before it in the queue, failed with ValueError" in caplog.text


@pytest.mark.parametrize("handler_raises", [False, True])
async def test_a_linked_task(app: FastAPI, client: AsyncClient, spans: Spans, handler_raises: bool) -> None:
    """The span of a lost task of the style `link` is the root of a trace, linked to where it was added."""

    @app.get("/")
    async def handler(tasks: LinkedTasks) -> None:
        with trace.get_tracer("mine").start_as_current_span("step"):
            tasks.add_task(notify)
        raise HTTPException(402)

    await client.get("/")

    span = spans["background_task notify"]
    assert span.parent is None
    assert [link.context for link in span.links] == [spans["step"].context]


async def test_what_ran_is_not_lost(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task that ran once is not reported: not when its queue runs again and fails, nor when it is thrown away."""
    failing = [False, True]

    def sometimes() -> None:
        if failing.pop(0):
            fail()

    tasks = TracedBackgroundTasks()
    tasks.add_task(sometimes)
    tasks.add_task(notify)
    await tasks()

    with pytest.raises(ValueError, match="4242"):
        await tasks()
    del tasks
    collect_garbage()

    assert lost(spans) == {}
    (failure,) = caplog.records
    assert "sometimes failed with ValueError after" in failure.getMessage()


async def test_what_was_skipped_is_not_dropped(spans: Spans) -> None:
    """A task is lost once only."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(fail)
    tasks.add_task(notify)

    with pytest.raises(ValueError, match="4242"):
        await tasks()
    del tasks
    collect_garbage()

    assert [span.name for span in spans.tasks()] == ["background_task fail", "background_task notify"]


async def test_a_task_that_was_refused_is_not_lost(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """What `add_task` refused is not reported as well."""
    with pytest.raises(TypeError):
        TracedBackgroundTask("notify")  # type: ignore[arg-type]
    collect_garbage()

    assert spans() == []
    assert caplog.records == []


async def test_an_own_class_of_task(spans: Spans) -> None:
    """A subclass runs its function by `super().__call__()`, now or later. If that is never called, the task is lost."""

    class Later(TracedBackgroundTask):
        async def __call__(self) -> None:
            later.append(super().__call__)

    class Never(TracedBackgroundTask):
        async def __call__(self) -> None: ...

    class Repeated(TracedBackgroundTask):
        async def __call__(self, times: int = 2) -> None:
            for _ in range(times):
                await super().__call__()

    later: list[Callable[[], Any]] = []
    await TracedBackgroundTasks([Later(print), Never(notify), Repeated(repr, 1)])()
    await later.pop()()

    assert [(span.name, span.status.is_ok) for span in spans()] == [
        ("background_task repr", True),
        ("background_task repr", True),
        ("background_task notify", False),
        ("background_task print", True),
    ]
    assert lost(spans) == {"notify": "dropped"}


async def test_an_own_class_of_task_that_raises_first(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A subclass that raises before it calls `super().__call__()` has not run its function, which is told."""

    class Refusing(TracedBackgroundTask):
        async def __call__(self) -> None:
            fail()

    tasks = TracedBackgroundTasks([Refusing(notify)])
    tasks.add_task(print)

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert lost(spans) == {"notify": "skipped", "print": "skipped"}
    assert "notify was skipped: it failed with ValueError before its function was called." in caplog.text


async def test_an_own_class_of_task_that_waits_first() -> None:
    """A subclass that is cancelled while it waits, before it calls `super().__call__()`, has not run its function."""

    class Delayed(TracedBackgroundTask):
        async def __call__(self) -> None:
            await anyio.sleep_forever()

    with record_tasks(allow_lost=True) as tasks, anyio.move_on_after(0.01):
        await TracedBackgroundTasks([Delayed(notify)])()

    assert tasks.one(notify).outcome == "skipped"


class Order:
    """An argument that can be watched."""


async def test_an_own_class_of_task_as_a_function(spans: Spans) -> None:
    """A subclass with its own `__call__` is still an async function to `add_task`."""
    ran: list[str] = []

    class Own(TracedBackgroundTask):
        async def __call__(self) -> None:
            await super().__call__()

    class Mixin:
        async def __call__(self) -> None:
            ran.append("mixin")

    class Mixed(Mixin, TracedBackgroundTask):
        pass

    tasks = TracedBackgroundTasks()
    tasks.add_task(Own(ran.append, "own"))
    tasks.add_task(Mixed(print))
    await tasks()
    del tasks

    assert ran == ["own", "mixin"]
    assert lost(spans) == {"print": "dropped"}  # the mixin has not called it


async def test_a_sync_task_in_a_cancelled_scope(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose function is not called, because its scope is cancelled already, is skipped: it did not fail."""
    tasks = TracedBackgroundTasks()

    with anyio.CancelScope() as scope:

        def cancel() -> None:
            anyio.from_thread.run_sync(scope.cancel)

        tasks.add_task(cancel)
        tasks.add_task(notify)
        tasks.add_task(print)
        await tasks()

    assert scope.cancelled_caught
    assert lost(spans) == {"notify": "skipped", "print": "skipped"}
    assert spans["background_task cancel"].status.is_ok
    assert "notify was skipped: it was cut short by" in caplog.text
    assert "print was skipped: its queue was cut short by" in caplog.text


async def test_an_own_class_of_sync_task_in_a_cancelled_scope() -> None:
    """The same goes for a subclass that wraps the call."""

    class Wrapping(TracedBackgroundTask):
        async def __call__(self) -> None:
            await super().__call__()

    with record_tasks(allow_lost=True) as tasks, anyio.CancelScope() as scope:
        scope.cancel()
        await TracedBackgroundTasks([Wrapping(notify)])()

    assert tasks.one(notify).outcome == "skipped"


async def test_a_copy(spans: Spans) -> None:
    """A copy of a task is not reported: the task is what was added."""
    task = TracedBackgroundTask(print)
    copied = copy.copy(task)

    await task()
    del task, copied

    assert [span.status.is_ok for span in spans()] == [True]


async def test_a_hook_that_exits_for_a_lost_task(spans: Spans) -> None:
    """A hook that wants to end the program for a lost task does not take the place of what the application raised."""

    def leave(span: Any, task: TracedBackgroundTask) -> None:
        if task.func is not fail:
            raise SystemExit(3)

    tasks = TracedBackgroundTasks(tracing=TaskTracing(task_hook=leave, attributes={"error.type": "mine"}))
    tasks.add_task(fail)
    tasks.add_task(notify)
    tasks.add_task(print)

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    assert lost(spans) == {"notify": "skipped", "print": "skipped"}


async def test_no_thread_to_be_had(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reported for want of a thread is reported with what is lost next."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def lose(func: Callable[..., None]) -> None:
        cycle: list[object] = [TracedBackgroundTask(func)]
        cycle.append(cycle)

    fresh = Reporter()
    monkeypatch.setattr(_lost, "reporter", fresh)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            lose(notify)
            gc.collect()
        assert lost(spans) == {}
        lose(print)
        gc.collect()
        fresh.flush(10)
    finally:
        gc.callbacks.remove(fresh._watch)

    assert lost(spans) == {"notify": "dropped", "print": "dropped"}


async def test_a_hook_that_adds_a_task_for_a_lost_one(spans: Spans) -> None:
    """What a hook adds while the losses of its queue are reported is not lost as well, or that would never end."""
    replaced: list[object] = []

    def replace(span: trace.Span, task: TracedBackgroundTask) -> None:
        if task.func is not fail and len(replaced) < 3 and task.args != ("instead",):
            replaced.append(task.func)
            queue.add_task(print, "instead")

    queue = TracedBackgroundTasks(tracing=TaskTracing(task_hook=replace))
    queue.add_task(fail)
    queue.add_task(notify)

    with suppress(ValueError):
        await queue()

    assert replaced == [notify]
    assert lost(spans) == {"notify": "skipped"}
    await queue.tasks.pop()()


async def test_a_cancelled_plain_queue_in_the_queue(spans: Spans) -> None:
    """Of a plain queue in the queue, those are lost that did not run, and each once."""
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            scope.cancel()
            await anyio.sleep(1)

        plain = BackgroundTasks([BackgroundTask(notify), BackgroundTask(cancel), BackgroundTask(print)])
        await TracedBackgroundTasks([plain, BackgroundTask(fail)])()

    assert [span.name.removeprefix("background_task ") for span in spans.tasks()] == [
        "notify",
        "cancel",
        "print",
        "fail",
    ]
    assert lost(spans) == {"print": "skipped", "fail": "skipped"}


async def test_a_plain_queue_in_the_queue_that_grows(spans: Spans) -> None:
    """What is added to a plain queue after it was put into the queue runs, as it would without tracing."""
    inner = BackgroundTasks()
    tasks = TracedBackgroundTasks([inner])
    inner.add_task(print)

    await tasks()

    assert [span.name for span in spans()] == ["background_task print"]


async def test_a_queue_in_itself(spans: Spans) -> None:
    """A failure ends a queue that contains itself, as it would without tracing."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(fail)
    tasks.tasks.append(tasks)

    with pytest.raises(ValueError, match="4242"):
        await tasks()

    tasks.tasks.clear()


class NoisyHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("disk full")


async def test_a_log_handler_that_raises(spans: Spans) -> None:
    """A log handler that raises changes nothing of what the task raised, nor of what is told elsewhere."""
    handler = NoisyHandler()
    logging.getLogger("traced_tasks").addHandler(handler)
    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
    tasks.add_task(fail)
    tasks.with_options(on_error="stop", task_hook=lambda span, task: fail()).add_task(fail)
    tasks.add_task(notify)

    try:
        with pytest.raises(ExceptionGroup) as caught:
            await tasks()
    finally:
        logging.getLogger("traced_tasks").removeHandler(handler)

    assert len(caught.value.exceptions) == 2
    assert lost(spans) == {"notify": "skipped"}


async def test_a_queue_that_is_thrown_away_while_it_runs(spans: Spans) -> None:
    """A queue that is collected as garbage in the middle of a task reports the end of that and the loss of the rest."""

    class Suspend:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def wait() -> None:
        await Suspend()

    tasks = TracedBackgroundTasks()
    tasks.add_task(wait)
    tasks.add_task(notify)

    def run_a_bit() -> None:
        coroutine = tasks()
        coroutine.send(None)
        cycle: list[object] = [coroutine]
        cycle.append(cycle)

    contextvars.copy_context().run(run_a_bit)
    collect_garbage()

    assert (spans["background_task wait"].attributes or {})["error.type"] == "GeneratorExit"
    assert lost(spans) == {"notify": "skipped"}


FORK = """
    import gc, os, sys
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    import asyncio, logging
    from traced_tasks import TaskTracing, TracedBackgroundTasks
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    reader = InMemoryMetricReader()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=MeterProvider([reader])))

    def active():
        metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        return [p.value for m in metrics if m.name == "background_task.active" for p in m.data.data_points]

    async def fork():
        sys.stdout.flush()
        if os.fork() == 0:
            global tasks
            tasks.tasks.clear()
            del tasks
            gc.collect()
            print("child", active(), flush=True)
            os._exit(0)
        os.wait()

    async def rest():
        print("parent", active())

    tasks.add_task(fork)
    tasks.add_task(rest)
    asyncio.run(tasks())
"""


def test_a_fork() -> None:
    """A child process neither reports the tasks of its parent as lost nor counts them as its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == ["child [0, 0]", "parent [0, 1]"]
    assert done.stderr == ""


async def test_nothing_keeps_a_request_alive(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Queue, views, tasks and arguments go with their request, by reference count."""
    alive: list[weakref.ref[Any]] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks, linked: LinkedTasks) -> None:
        order = Order()
        tasks.add_task(notify, order)
        linked.add_task(notify, order)
        alive.extend(map(weakref.ref, (order, tasks, linked, *tasks.tasks)))

    gc.collect()
    gc.disable()
    try:
        await client.get("/")
        await worker_threads_let_go()
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("on_error", ["stop", "continue"])
async def test_a_failure_makes_no_cycle(spans: Spans, on_error: OnError) -> None:
    """When the exception of a queue is forgotten, so are its tasks and their arguments, by reference count."""
    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error=on_error))
    order = Order()

    async def async_fail(*args: object) -> None:
        fail()

    tasks.add_task(async_fail)
    tasks.add_task(async_fail, order)
    alive = [weakref.ref(each) for each in (order, tasks, *tasks.tasks)]
    del order

    gc.collect()
    gc.disable()
    try:
        with suppress(Exception):
            await tasks()
        del tasks
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


class CollectingProcessor(SpanProcessor):
    """It collects garbage while it holds a lock, as Python may do at any time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.names: list[str] = []

    def on_end(self, span: ReadableSpan) -> None:
        with self.lock:
            self.names.append(span.name)
            gc.collect()


async def test_the_garbage_collector_in_an_exporter(spans: Spans) -> None:
    """A task that is thrown away while this thread holds the lock of a span processor does not wait for it forever."""
    processor = CollectingProcessor()
    spans.provider.add_span_processor(processor)
    tasks = TracedBackgroundTasks()
    tasks.add_task(notify)
    cycle: list[object] = [tasks]
    cycle.append(cycle)
    del tasks, cycle

    def end_a_span() -> None:
        trace.get_tracer("mine").start_span("mine").end()

    thread = threading.Thread(target=end_a_span, daemon=True)
    thread.start()
    thread.join(10)

    assert not thread.is_alive()
    collect_garbage()
    assert processor.names == ["mine", "background_task notify"]


@pytest.mark.parametrize("moment", ["exit", "a crash", "os._exit", "in a task"])
def test_silence_at_exit(moment: str) -> None:
    """A queue that is alive when the interpreter ends makes no noise."""
    program = f"""
        import atexit, os
        from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks
        tasks = TracedBackgroundTasks()
        tasks.add_task(print)
        tasks.self = tasks
        task = TracedBackgroundTask(print)
        if {moment!r} == "in a task":
            running = TracedBackgroundTasks()
            class Suspend:
                def __await__(self):
                    yield
            async def wait():
                await Suspend()
            running.add_task(wait)
            running.add_task(print)
            coroutine = running()
            coroutine.send(None)
        if {moment!r} == "os._exit":
            os._exit(0)
        if {moment!r} == "a crash":
            raise SystemExit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == (3 if moment == "a crash" else 0)
    assert done.stdout + done.stderr == ""


async def test_silence_once_python_is_finalizing(
    spans: Spans, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is thrown away by an interpreter that is ending is not reported."""
    task = TracedBackgroundTask(print)

    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    del task

    assert spans() == []
    assert caplog.records == []


async def test_the_counter(spans: Spans) -> None:
    """Each lost task is one on `background_task.lost`."""
    reader = InMemoryMetricReader()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=MeterProvider([reader])))
    tasks.add_task(fail)
    tasks.add_task(notify)
    tasks.add_task(notify)

    with pytest.raises(ValueError, match="4242"):
        await tasks()
    tasks.add_task(print)
    tasks.tasks.pop()

    assert points(reader, "background_task.lost") == {
        ("tests.behaviour.test_lost.notify", "skipped"): 2,
        ("builtins.print", "dropped"): 1,
    }


async def test_many_at_once(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of tasks behind a failing one, or dropped, do not hold up the event loop: a thread reports most."""
    for drop in (False, True):
        tasks = TracedBackgroundTasks()
        tasks.add_task(fail)
        for _ in range(1000):
            tasks.add_task(notify)

        if not drop:
            with pytest.raises(ValueError, match="4242"):
                await tasks()
        del tasks

    assert len(spans.tasks()) == 2 * 1001
    threads = [record.threadName for record in caplog.records if "was" in record.getMessage()]
    assert len(threads) == 2001
    assert threads.count("traced_tasks") >= 1500


def test_what_the_thread_has_to_report_at_exit() -> None:
    """What was left to the thread is reported before a program ends and its provider shuts down."""
    program = """
        import asyncio
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
        from traced_tasks import TracedBackgroundTasks

        class Count(SpanExporter):
            def export(self, spans):
                count.extend(spans)

            def shutdown(self):
                print(len(count))

        count = []
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(Count(), max_queue_size=4000))
        trace.set_tracer_provider(provider)

        def fail():
            raise SystemExit

        tasks = TracedBackgroundTasks()
        tasks.add_task(fail)
        for _ in range(3000):
            tasks.add_task(print)
        try:
            asyncio.run(tasks())
        except SystemExit:
            pass
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.stdout == "3001\n"


class LockedHandler(logging.Handler):
    """It collects garbage while it holds its lock, as Python may do at any time."""

    def emit(self, record: logging.LogRecord) -> None:
        if "mine" in record.getMessage():
            gc.collect()


async def test_the_garbage_collector_in_a_log_handler(spans: Spans) -> None:
    """A queue that ran and is thrown away while this thread holds a lock of logging's does not wait for it forever."""

    class Suspend:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def wait() -> None:
        await Suspend()

    async def async_fail() -> None:
        fail()

    def collect() -> None:
        tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
        tasks.add_task(async_fail)
        tasks.add_task(wait)
        tasks.add_task(notify)
        coroutine = tasks()
        coroutine.send(None)
        cycle: list[object] = [coroutine]
        cycle.append(cycle)
        del coroutine, cycle, tasks
        logging.getLogger("traced_tasks").warning("mine")

    handler = LockedHandler()
    handler.createLock()
    # Not to be entered twice, as many a lock of an exporter is not.
    handler.lock = threading.Lock()  # type: ignore[assignment]
    logging.getLogger("traced_tasks").addHandler(handler)
    try:
        thread = threading.Thread(target=collect, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
        told = {span.name.removeprefix("background_task "): (span.attributes or {})["error.type"] for span in spans()}
        # Which of them is thrown away first, the queue or the task behind, is for Python to choose.
        assert told.pop("notify") in ("skipped", "dropped")
        assert told == {"async_fail": "ValueError", "wait": "GeneratorExit"}
    finally:
        logging.getLogger("traced_tasks").removeHandler(handler)


async def test_the_warning_of_a_loss(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """The warning of a lost task has function and error as attributes, and belongs to the lost task's span."""
    seen: list[int] = []

    def watch(record: logging.LogRecord) -> bool:
        seen.append(trace.get_current_span().get_span_context().span_id)
        return True

    caplog.handler.addFilter(watch)
    TracedBackgroundTask(notify)

    (span,) = spans()
    (warning,) = caplog.records
    assert seen == [span.context.span_id]
    assert vars(warning)["code.function.name"] == "tests.behaviour.test_lost.notify"
    assert vars(warning)["error.type"] == "dropped"


async def test_a_deep_copy(spans: Spans, measured: Metrics) -> None:
    """A deep copy of a queue is traced when it runs; what was added is the original, which is lost if it never runs."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(notify)

    copied = copy.deepcopy(tasks)
    await copied()
    del copied, tasks
    collect_garbage()

    assert [(span.name, span.status.is_ok) for span in spans()] == [
        ("background_task notify", True),
        ("background_task notify", False),
    ]
    assert measured.lost() == {("tests.behaviour.test_lost.notify", "dropped"): 1}
    assert measured.waiting() == {"tests.behaviour.test_lost.notify": 0}
