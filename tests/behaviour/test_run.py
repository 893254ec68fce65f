"""Where a run begins and where it ends: with its function, in its function's thread."""

import asyncio
import gc
import itertools
import logging
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextvars import ContextVar
from functools import wraps
from time import sleep
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import StatusCode
from starlette.background import BackgroundTask

from tests.conftest import Metrics, Spans, collect_garbage
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks


def attributes(span: ReadableSpan) -> Any:
    return span.attributes or {}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def errors(spans: Spans) -> dict[str, Any]:
    return {span.name.removeprefix("background_task "): attributes(span).get("error.type") for span in spans.tasks()}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


class OneThread:
    """Let worker threads be one, and keep it busy until `free` is set."""

    async def __aenter__(self) -> threading.Event:
        self.limiter = anyio.to_thread.current_default_thread_limiter()
        self.tokens, self.limiter.total_tokens = self.limiter.total_tokens, 1
        self.free, busy = threading.Event(), threading.Event()

        def keep_busy() -> None:
            busy.set()
            self.free.wait(10)

        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.group.start_soon(anyio.to_thread.run_sync, keep_busy)
        await until(busy.is_set)
        return self.free

    async def __aexit__(self, *exc_info: Any) -> None:
        self.free.set()
        await self.group.__aexit__(None, None, None)
        self.limiter.total_tokens = self.tokens


async def test_the_wait_for_a_thread_is_no_work(spans: Spans, measured: Metrics) -> None:
    """Three tasks that share one thread have spans of their own length; what they waited for it is queue time."""

    def work() -> None:
        sleep(0.05)

    async with OneThread() as free, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(TracedBackgroundTask(work))
        await anyio.sleep(0.05)
        free.set()

    tasks = spans.tasks()
    assert [seconds(span) > 0.04 for span in tasks] == [True] * 3
    for before, after in itertools.pairwise(tasks):
        assert before.end_time is not None
        assert after.start_time is not None
        assert before.end_time <= after.start_time
    waited = [attributes(span)["background_task.queue.duration"] for span in tasks]
    assert waited == sorted(waited)
    assert waited[0] > 0.04
    assert waited[2] - waited[0] > 0.08
    name = attributes(tasks[0])["code.function.name"]
    assert measured.points("background_task.queue.duration")[name].sum == pytest.approx(sum(waited))
    assert measured.points("background_task.duration")[name].sum == pytest.approx(sum(map(seconds, tasks)), abs=0.1)


async def test_a_span_is_its_threads(spans: Spans) -> None:
    """The span of a `def` task starts and ends in its worker thread, so a slow exporter holds up no event loop."""
    threads: list[str] = []

    class Where(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            threads.append(threading.current_thread().name)

        def on_end(self, span: ReadableSpan) -> None:
            threads.append(threading.current_thread().name)

    spans.provider.add_span_processor(Where())

    def work() -> None:
        threads.append(threading.current_thread().name)

    await TracedBackgroundTask(work)()

    assert len(set(threads)) == 1
    assert threads[0] != threading.current_thread().name


async def test_cancelled_while_it_waits_for_a_thread(
    spans: Spans, measured: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """A `def` task that is cancelled before its function was called is lost, and was not cut short."""
    ran: list[int] = []

    async with OneThread():
        with anyio.move_on_after(0.02) as scope:
            await TracedBackgroundTask(ran.append, 1)()

    assert scope.cancelled_caught
    assert ran == []
    assert errors(spans) == {"list.append": "skipped"}
    assert "list.append was skipped: it was cut short by " in caplog.text
    assert measured.lost() == {("list.append", "skipped"): 1}
    assert measured.waiting() == {"list.append": 0}
    assert measured["background_task.duration"] is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_cancellation_while_it_waits_for_a_thread(spans: Spans) -> None:
    """The same goes for asyncio's own `Task.cancel()`, with which a server ends what is left when its grace is over."""
    ran: list[int] = []
    tasks = TracedBackgroundTasks()
    tasks.add_task(ran.append, 1)
    tasks.add_task(print)

    async with OneThread():
        task = asyncio.create_task(tasks())
        await anyio.sleep(0.02)
        task.cancel()
        (raised,) = await asyncio.gather(task, return_exceptions=True)

    assert type(raised) is asyncio.CancelledError
    assert ran == []
    assert errors(spans) == {"list.append": "skipped", "print": "skipped"}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_while_it_runs_in_a_thread(spans: Spans, measured: Metrics) -> None:
    """A `def` task goes on when nobody waits for it any longer, and so does its span, until the function ends."""
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        leave.wait(10)

    tasks = TracedBackgroundTasks()
    tasks.add_task(work)
    tasks.add_task(print)
    task = asyncio.create_task(tasks())
    assert await anyio.to_thread.run_sync(inside.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert errors(spans) == {"print": "skipped"}
    assert list(measured.active().values()) == [1, 0]
    leave.set()
    await until(lambda: "work" in errors(spans))
    assert errors(spans)["work"] is None
    assert list(measured.active().values()) == [0, 0]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_in_the_moment_it_starts(spans: Spans) -> None:
    """A task whose thread arrives when it has been reported as cancelled is not called any more."""
    ran: list[int] = []
    arrived, cancelled = threading.Event(), threading.Event()
    loop = threading.current_thread()

    class Tickets(dict[object, int]):
        def pop(self, ticket: object, *default: Any) -> Any:
            if threading.current_thread() is not loop:
                arrived.set()
                cancelled.wait(10)
            return super().pop(ticket, *default)

    background_task = TracedBackgroundTask(ran.append, 1)
    background_task.instruments.waiting = Tickets(background_task.instruments.waiting)
    task = asyncio.create_task(background_task())
    await until(arrived.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    cancelled.set()
    await anyio.to_thread.run_sync(str)

    assert ran == []
    assert errors(spans) == {"list.append": "skipped"}


def test_the_end_of_the_loop(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task that waits for a thread when its event loop is closed is lost, and the reason tells of nothing else."""
    leave = threading.Event()

    async def main() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        blocker = asyncio.create_task(anyio.to_thread.run_sync(leave.wait, 10))
        await asyncio.sleep(0.02)
        waiting.append(TracedBackgroundTask(print)())
        waiting.append(asyncio.create_task(waiting.pop(0)))
        await asyncio.sleep(0.02)
        leave.set()
        del blocker

    waiting: list[Any] = []
    asyncio.run(main())
    waiting.clear()
    collect_garbage()

    assert errors(spans) == {"print": "skipped"}
    assert "builtins.print was skipped: it was cut short by asyncio.exceptions.CancelledError before" in caplog.text


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_random_cancellations(spans: Spans) -> None:
    """Of many tasks that are cancelled at random moments, each ran or was lost, and none both or neither."""
    ran: set[int] = set()
    chosen = random.Random(8)
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 3

    async def one(number: int) -> None:
        tasks = TracedBackgroundTasks(tracing=TaskTracing(span_name=str(number)))
        tasks.add_task(ran.add, number)
        task = asyncio.create_task(tasks())
        for _ in range(chosen.randrange(6)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(0, 1000, 20):
        await asyncio.gather(*map(one, range(start, start + 20)))
    limiter.total_tokens = tokens
    await until(lambda: len(spans.tasks()) == 1000)

    lost = {int(span.name) for span in spans.tasks() if attributes(span).get("error.type") in ("skipped", "dropped")}
    assert len(spans.tasks()) == 1000
    assert ran | lost == set(range(1000))
    assert not ran & lost
    assert ran
    assert lost


@pytest.mark.parametrize("is_async", [True, False])
async def test_one_task_for_two_responses(spans: Spans, is_async: bool) -> None:
    """A task that two responses have runs for each of them, at the same time, and is measured twice."""
    both = anyio.Event()
    barrier = threading.Barrier(2, timeout=10)
    inside: list[int] = []

    async def meet() -> None:
        inside.append(1)
        if len(inside) == 2:
            both.set()
        await both.wait()

    task = TracedBackgroundTask(meet if is_async else barrier.wait)
    async with anyio.create_task_group() as group:
        group.start_soon(task)
        group.start_soon(task)

    assert [span.status.is_ok for span in spans.tasks()] == [True, True]


async def work() -> None:
    trace.get_tracer("mine").start_span("work").end()


def decorated(func: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], Coroutine[Any, Any, None]]:
    @wraps(func)
    def wrapper() -> Coroutine[Any, Any, None]:
        return func()

    return wrapper


async def returns_a_coroutine() -> object:
    return work()


async def async_generator() -> AsyncIterator[None]:
    await work()
    yield


def generator() -> Iterator[None]:
    yield


class TaskObject:
    """An engine's: to call it makes a coroutine, and it says so nowhere."""

    def __call__(self) -> Coroutine[Any, Any, None]:
        return work()


@pytest.mark.filterwarnings("ignore:coroutine 'work' was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    ("func", "error"),
    [
        (decorated(work), "never_awaited"),
        (lambda: work(), "never_awaited"),
        (returns_a_coroutine, "never_awaited"),
        (async_generator, "never_awaited"),
        (TaskObject(), "never_awaited"),
        (generator, "never_iterated"),
    ],
    ids=["decorated", "lambda", "async def", "async generator", "object", "generator"],
)
async def test_a_body_that_never_ran(
    spans: Spans, measured: Metrics, caplog: pytest.LogCaptureFixture, func: Callable[[], Any], error: str
) -> None:
    """A function that returns a body which nobody runs has failed, says what to do, and does not stop the queue."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(func)
    tasks.add_task(print)

    await tasks()
    gc.collect()

    lost, behind = spans.tasks()
    assert behind.status.is_ok
    assert attributes(lost)["error.type"] == error
    assert lost.status.status_code is StatusCode.ERROR
    assert "background_task.queue.duration" in attributes(lost)
    assert [span.name for span in spans()] == [lost.name, behind.name]
    (warning,) = caplog.records
    name = attributes(lost)["code.function.name"]
    assert warning.getMessage().startswith(f"The body of the background task {name} never ran: its function returned a")
    assert "Give add_task" in warning.getMessage()
    assert (vars(warning)["code.function.name"], vars(warning)["error.type"]) == (name, error)
    assert measured.lost() == {(name, error): 1}
    assert measured.points("background_task.duration")[name].attributes["error.type"] == error


async def test_a_body_that_somebody_ran(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A function that returns what it, or somebody else, has run or begun to run did its work."""

    def by_hand() -> Any:
        coroutine = work()
        with pytest.raises(StopIteration):
            coroutine.send(None)
        return coroutine

    def iterated() -> Any:
        iterator = generator()
        list(iterator)
        return iterator

    def begun() -> Any:
        next(iterator)
        return iterator

    iterator = generator()
    tasks = TracedBackgroundTasks()
    for func in (by_hand, iterated, begun, str, dict):
        tasks.add_task(func)

    await tasks()

    assert [span.status.is_ok for span in spans.tasks()] == [True] * 5
    assert caplog.records == []


class Shy(type):
    def __subclasscheck__(cls, subclass: type) -> bool:
        raise RuntimeError

    @property
    def __mro__(cls) -> Any:
        raise RuntimeError("no relatives")


async def test_a_result_that_cannot_be_looked_at(spans: Spans) -> None:
    """A result whose class raises when it is asked for its kind is a result."""

    class Result(metaclass=Shy):
        pass

    await TracedBackgroundTask(lambda: Result())()

    (span,) = spans.tasks()
    assert span.status.is_ok


def raise_it() -> None:
    raise ValueError("card 4242 refused")


async def async_raise_it() -> None:
    raise ValueError("card 4242 refused")


class BrokenExporter(SpanProcessor):
    """As under `SimpleSpanProcessor`, of an SDK that does not guard it: it logs what it was in the middle of."""

    def on_end(self, span: ReadableSpan) -> None:
        try:
            raise OSError("disk full")
        except OSError:
            logging.getLogger("exporter").exception("Exception while exporting Span.")


def record_what_was_caught(span: trace.Span, task: TracedBackgroundTask) -> None:
    try:
        raise KeyError("user_id")
    except KeyError as caught:
        span.record_exception(caught)


def raise_a_group(span: trace.Span, task: TracedBackgroundTask) -> None:
    try:
        raise_group()
    except* LookupError as caught:
        raise ExceptionGroup("hooks failed", list(caught.exceptions)) from None


def raise_group() -> None:
    raise ExceptionGroup("hooks", [KeyError("user_id")])


def log_what_was_caught(span: trace.Span, task: TracedBackgroundTask) -> None:
    logging.getLogger("hook").exception("no user")


@pytest.mark.parametrize("func", [raise_it, async_raise_it])
@pytest.mark.parametrize(
    "hook",
    [None, record_what_was_caught, raise_a_group, log_what_was_caught],
    ids=["exporter", "record", "group", "log"],
)
async def test_nothing_carries_the_exception_along(
    spans: Spans, caplog: pytest.LogCaptureFixture, func: Callable[[], Any], hook: Any
) -> None:
    """With `record_exception=False` the message is in nothing that an exporter or a hook logs, records or raises."""
    if hook is None:
        spans.provider.add_span_processor(BrokenExporter())
    tasks = TracedBackgroundTasks(tracing=TaskTracing(record_exception=False, task_hook=hook))
    tasks.add_task(func)
    tasks.add_task(print)

    with pytest.raises(ValueError, match="4242") as caught:
        await tasks()

    assert caught.value.__context__ is None
    assert errors(spans)["print"] == "skipped"
    recorded = "".join(span.to_json() for span in spans())
    assert "refused" not in recorded + caplog.text
    assert hook is not None or "disk full" in caplog.text


async def test_the_warning_of_a_failure(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A failure has one warning: task, class and time, no message and no traceback, inside the span."""
    seen: list[int] = []

    class Where:
        def filter(self, record: Any) -> bool:
            seen.append(trace.get_current_span().get_span_context().span_id)
            return True

    caplog.handler.addFilter(Where())

    with pytest.raises(ValueError, match="4242"):
        await TracedBackgroundTask(raise_it)()

    (warning,) = caplog.records
    name = "tests.behaviour.test_run.raise_it"
    assert warning.levelname == "WARNING"
    assert warning.getMessage().startswith(f"The background task {name} failed with ValueError after 0.0")
    assert (vars(warning)["code.function.name"], vars(warning)["error.type"]) == (name, "ValueError")
    assert warning.exc_info is None
    assert "refused" not in caplog.text
    (span,) = spans()
    assert seen == [span.context.span_id]


async def test_a_plain_task_of_a_wrong_kind_is_told(spans: Spans) -> None:
    """What a plain task's function returns is looked at as well."""
    await TracedBackgroundTasks([BackgroundTask(generator)])()

    assert errors(spans) == {"generator": "never_iterated"}


def test_metrics_of_a_task_without_a_span() -> None:
    """Without a tracer provider the metrics of a failing task and of a body that never ran are the same."""
    reader = InMemoryMetricReader()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=MeterProvider([reader]), on_error="continue"))
    tasks.add_task(generator)
    tasks.add_task(raise_it)

    with pytest.raises(ExceptionGroup):
        asyncio.run(tasks())

    data: Any = reader.get_metrics_data()
    points = [
        point.attributes["error.type"]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        if metric.name == "background_task.duration"
    ]
    assert points == ["never_iterated", "ValueError"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("on_error", ["stop", "continue"])
async def test_a_coroutine_that_hides_that_it_is_thrown_away(
    spans: Spans, caplog: pytest.LogCaptureFixture, on_error: Any
) -> None:
    """A task that makes something else of its `GeneratorExit` is thrown away all the same: nothing runs behind it."""
    ran: list[int] = []

    class Suspend:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def hide() -> None:
        try:
            await Suspend()
        except BaseException:
            raise RuntimeError("closed")  # noqa: B904

    async def behind() -> None:
        ran.append(1)

    async def a_step() -> None:
        coroutine.send(None)

    variable.set("before")
    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error=on_error, context_variables=True))
    tasks.add_task(hide)
    tasks.add_task(behind)
    coroutine: Any = tasks()
    await asyncio.create_task(a_step())  # in another context

    with pytest.raises(RuntimeError, match="closed"):
        coroutine.close()

    assert ran == []
    assert errors(spans) == {"hide": "RuntimeError", "behind": "skipped"}
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


variable: ContextVar[str] = ContextVar("variable")


class CollectingExporter(SpanProcessor):
    """It collects garbage while it holds its lock, as Python may do at any time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended: list[str] = []

    def on_end(self, span: ReadableSpan) -> None:
        with self.lock:
            self.ended.append(span.name)
            gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_task_group_that_is_thrown_away_in_an_exporter(spans: Spans) -> None:
    """A collected task that makes a group of its `GeneratorExit`, as task groups do, does not end in the exporter."""
    exporter = CollectingExporter()
    spans.provider.add_span_processor(exporter)

    class Suspend:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def group() -> None:
        try:
            await Suspend()
        except BaseException as error:
            raise BaseExceptionGroup("group", [error]) from None

    def collect() -> None:
        coroutine = TracedBackgroundTasks([TracedBackgroundTask(group)])()
        coroutine.send(None)
        cycle: list[object] = [coroutine]
        cycle.append(cycle)
        del coroutine, cycle
        trace.get_tracer("mine").start_span("mine").end()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(10)

    assert not thread.is_alive()
    collect_garbage()
    assert exporter.ended == ["mine", "background_task group"]


async def test_the_end_is_the_functions(spans: Spans) -> None:
    """A slow log handler is no part of the span of a task that fails."""

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sleep(0.2)

    handler = Slow()
    logging.getLogger("traced_tasks").addHandler(handler)
    try:
        with pytest.raises(ValueError, match="4242"):
            await TracedBackgroundTask(async_raise_it)()
    finally:
        logging.getLogger("traced_tasks").removeHandler(handler)

    (span,) = spans()
    assert seconds(span) < 0.15


async def test_the_context_of_an_exception(spans: Spans) -> None:
    """What a task's exception came from stays with it, also where the queue runs while another exception is handled."""

    async def fail() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904

    chains: list[list[type[BaseException]]] = []
    for queue in (BackgroundTasks, TracedBackgroundTasks):
        tasks = queue()
        tasks.add_task(fail)
        error: BaseException | None = None
        try:
            raise LookupError("of the handler")
        except LookupError:
            try:
                await tasks()
            except ValueError as raised:
                error = raised
        chain: list[type[BaseException]] = []
        while error is not None:
            chain.append(type(error))
            error = error.__context__
        chains.append(chain)

    plain, traced = chains
    assert traced == plain == [ValueError, KeyError, LookupError]


def test_a_retry_in_an_except(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of a hook that fails in a retry does not carry the exception of the first try along."""

    class Retry(TracedBackgroundTask):
        async def __call__(self) -> None:
            try:
                await super().__call__()
            except ValueError:
                await super().__call__()

    def broken(span: trace.Span, task: TracedBackgroundTask) -> None:
        raise RuntimeError("hook broke")

    task = Retry(async_raise_it)
    task.tracing = TaskTracing(record_exception=False, task_hook=broken)

    with pytest.raises(ValueError, match="4242"):
        asyncio.run(task())

    assert "hook broke" in caplog.text
    assert "refused" not in caplog.text


def test_silence_of_a_module_at_exit() -> None:
    """A queue that a module of the standard library keeps until the very end makes no noise."""
    program = "import json; from traced_tasks import TracedBackgroundTasks as Q; json.q = Q(); json.q.add_task(print)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
