"""What waits and runs, as `unfinished_tasks()` finds it and `report_unfinished_tasks()` reports it."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from starlette.background import BackgroundTask

from tests.conftest import Spans
from traced_tasks import (
    TaskTracing,
    TracedBackgroundTask,
    TracedBackgroundTasks,
    report_unfinished_tasks,
    unfinished_tasks,
)
from traced_tasks.unfinished import UnfinishedTask


class Lines(logging.Handler):
    """What the logger `traced_tasks` has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def __call__(self, level: str = "WARNING") -> list[str]:
        """The lines of a level, each up to the tasks that it lists."""
        return [line.getMessage().partition(":")[0] for line in self.records if line.levelname == level]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("traced_tasks")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def signals() -> Iterator[list[str]]:
    """The signals that came to the handlers of a server, as it were."""
    came: list[str] = []

    def handle(number: int, frame: object) -> None:
        came.append(signal.Signals(number).name)

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    yield came
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is handle
    for number, handler in earlier.items():
        signal.signal(number, handler)


UNFINISHED = "Unfinished background tasks at"
AT_THE_END = f"{UNFINISHED} the end of the application"


def notify(*args: object) -> None: ...


async def until(is_so: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not is_so():  # noqa: ASYNC110
            await anyio.sleep(0.01)


def states(tasks: list[UnfinishedTask]) -> list[tuple[str, str]]:
    return [(task.function.rpartition(".")[2], task.state) for task in tasks]


async def test_one_that_runs_and_one_that_waits(app: FastAPI, client: httpx.AsyncClient, spans: Spans) -> None:
    """A task that runs is found with its span's trace, one behind it with the request's, and none when they ended."""
    found: list[UnfinishedTask] = []

    @app.post("/checkout")
    async def checkout(
        tasks: Annotated[TracedBackgroundTasks, TaskTracing(propagation_style="link")],
    ) -> None:
        async def charge() -> None:
            await anyio.sleep(0.05)
            found.extend(unfinished_tasks())

        tasks.add_task(charge)
        await anyio.sleep(0.02)
        tasks.add_task(notify)

    await client.post("/checkout")

    assert states(found) == [("charge", "running"), ("notify", "waiting")]
    running, waiting = found
    assert 0.05 <= running.seconds <= waiting.seconds < 10
    charge = spans["background_task charge"].context
    request = spans["POST /checkout"].context
    assert running.trace_id == trace.format_trace_id(charge.trace_id)
    assert waiting.trace_id == trace.format_trace_id(request.trace_id)
    assert unfinished_tasks() == []


async def test_one_that_waits_for_a_thread() -> None:
    """A `def` task that waits for a worker thread is waiting, for as long as it has been since `add_task`."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    go = threading.Event()

    def wait() -> None:
        go.wait(10)

    first, second = TracedBackgroundTask(wait), TracedBackgroundTask(notify)
    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await until(lambda: states(unfinished_tasks()) == [("wait", "running"), ("notify", "waiting")])
        group.start_soon(second)
        await anyio.sleep(0.05)
        _, waiting = unfinished_tasks()
        go.set()
    limiter.total_tokens = tokens

    assert (waiting.state, waiting.trace_id) == ("waiting", None)
    assert 0.05 <= waiting.seconds < 10
    assert unfinished_tasks() == []


async def test_what_an_exception_has_left_behind(app: FastAPI, client: httpx.AsyncClient, spans: Spans) -> None:
    """A task that only the frames of an exception still hold does not wait: it is lost, and reported as that."""

    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        cycle: list[object] = [tasks]
        cycle.append(cycle)
        raise LookupError

    with pytest.raises(LookupError):
        await client.post("/checkout")

    assert unfinished_tasks() == []
    assert (spans["background_task notify"].attributes or {})["error.type"] == "dropped"


async def test_a_task_that_fails_or_is_cancelled() -> None:
    """However a task ends, it is finished then."""

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await TracedBackgroundTask(fail)()
    with anyio.move_on_after(0.01):
        await TracedBackgroundTask(anyio.sleep_forever)()

    assert unfinished_tasks() == []


def test_a_process_that_is_forked_off() -> None:
    """What runs and waits in a process neither runs nor waits in one that was forked off from it."""
    queue = TracedBackgroundTasks()
    found: list[int] = []

    async def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(len(unfinished_tasks()))
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # noqa: ASYNC222
        found.append(len(unfinished_tasks()))

    queue.add_task(fork)
    queue.add_task(notify)
    anyio.run(queue)

    assert found == [0, 2]


async def test_a_signal(signals: list[str], lines: Lines, anyio_backend_name: str) -> None:
    """A signal is reported with what runs and waits, goes to the earlier handler, and the end of the tasks is told."""
    queue = TracedBackgroundTasks()
    go = anyio.Event()
    queue.add_task(go.wait)
    for number in range(24):
        queue.add_task(notify, number)

    async with anyio.create_task_group() as group:
        with report_unfinished_tasks():
            group.start_soon(queue)
            await until(lambda: states(unfinished_tasks())[0] == ("wait", "running"))
            signal.raise_signal(signal.SIGTERM)
            await until(lines)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            go.set()
            await until(lambda: lines("INFO"))

    assert signals == ["SIGTERM", "SIGTERM", "SIGINT"]
    stop, end = lines.records
    assert (stop.levelname, end.levelname) == ("WARNING", "INFO")
    assert "SIGTERM: 1 running, 24 waiting: " in stop.getMessage()
    assert stop.getMessage().count(" s)") == 20
    assert "Event.wait (running for " in stop.getMessage()
    assert stop.getMessage().endswith(", and 5 more.")
    assert (vars(stop)["background_task.running"], vars(stop)["background_task.waiting"]) == (1, 24)
    assert end.getMessage() == "The background tasks that were unfinished at SIGTERM have ended."


async def test_a_block_that_ends_first(signals: list[str], lines: Lines) -> None:
    """What is unfinished where the block ends is reported, without a signal and with one."""
    task = TracedBackgroundTask(anyio.sleep_forever)

    async with anyio.create_task_group() as group:
        group.start_soon(task)
        await until(unfinished_tasks)
        with report_unfinished_tasks():
            pass
        with report_unfinished_tasks():
            signal.raise_signal(signal.SIGINT)
        group.cancel_scope.cancel()

    assert lines()[:3] == [AT_THE_END, f"{UNFINISHED} SIGINT", AT_THE_END]


async def test_more_losses_than_are_reported_at_once(spans: Spans, lines: Lines) -> None:
    """Where the block ends, all that a stop has lost is told, so that the SDK may be shut down behind it."""
    queue = TracedBackgroundTasks()
    queue.add_task(anyio.sleep_forever)
    for number in range(300):
        queue.add_task(notify, number)

    with report_unfinished_tasks():
        with anyio.move_on_after(0.01):
            await queue()

    lost = [span for span in spans.exporter.get_finished_spans() if span.name == "background_task notify"]
    assert len(lost) == 300


async def test_nothing_to_report(signals: list[str], lines: Lines) -> None:
    """Where nothing runs or waits, there is no line, whatever comes."""
    with report_unfinished_tasks():
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep(0.05)

    assert (signals, lines.records) == (["SIGTERM"], [])


async def test_a_block_in_the_block(signals: list[str], lines: Lines) -> None:
    """An application inside of another one reports nothing once more."""
    async with anyio.create_task_group() as group:
        with report_unfinished_tasks(), report_unfinished_tasks():
            group.start_soon(TracedBackgroundTask(anyio.sleep_forever))
            await until(unfinished_tasks)
            signal.raise_signal(signal.SIGTERM)
        group.cancel_scope.cancel()

    assert signals == ["SIGTERM"]
    assert lines()[:2] == [f"{UNFINISHED} SIGTERM", AT_THE_END]


async def test_another_thread(signals: list[str], lines: Lines) -> None:
    """Outside of the main thread, where Python lets nobody set a handler, nothing happens."""

    def block() -> None:
        with report_unfinished_tasks():
            pass

    task = TracedBackgroundTask(notify)
    await anyio.to_thread.run_sync(block)
    await task()

    assert lines.records == []


async def test_a_platform_without_the_signal(signals: list[str], lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no SIGTERM, the other signal is enough."""
    monkeypatch.delattr(signal, "SIGTERM")
    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        signal.raise_signal(signal.SIGINT)
        await until(lines)
        await task()
    monkeypatch.undo()

    assert lines.records[0].getMessage().startswith("Unfinished background tasks at SIGINT: 0 running, 1 waiting: ")


def test_handlers_that_are_left_alone(signals: list[str]) -> None:
    """A signal that is ignored stays so, and a handler that somebody has set in the block is not taken from him."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def set_later(number: int, frame: object) -> None: ...

    with report_unfinished_tasks():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, set_later)
    assert signal.getsignal(signal.SIGTERM) is set_later

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("handler", ["", "logging.getLogger('traced_tasks').addHandler(Stuck())"])
def test_the_default_of_a_signal(handler: str) -> None:
    """Without a server's handler the signal ends the process as before, behind the report, or a second later."""
    program = f"""
import logging, signal, sys, threading, time
from traced_tasks import TracedBackgroundTasks, report_unfinished_tasks

class Stuck(logging.Handler):
    def emit(self, record):
        time.sleep(60)

def notify(): ...

{handler}
queue = TracedBackgroundTasks()
queue.add_task(notify)
with report_unfinished_tasks():
    signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert ended.returncode == -signal.SIGTERM
    if not handler:
        report = (
            r"Unfinished background tasks at SIGTERM: 0 running, 1 waiting: __main__.notify \(waiting for \d+.\d s\).\n"
        )
        assert re.fullmatch(report, ended.stderr)


def test_the_default_behind_the_report(signals: list[str], lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of a signal is set again, and then raised."""
    raised: list[object] = []
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((signal.getsignal(number), lines())))
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    anyio.run(task)

    assert raised == [(signal.SIG_DFL, [f"{UNFINISHED} SIGTERM"])]


def test_a_child_in_the_block(signals: list[str], lines: Lines) -> None:
    """A process that was forked off in the block reports nothing, and may have a block of its own."""
    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            own = TracedBackgroundTask(notify)
            with report_unfinished_tasks():
                pass
            os._exit(len(signals) + 10 * len(lines()) if own else 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        anyio.run(task)

    assert status == 11
    assert lines.records == []


async def test_a_task_whose_span_starts() -> None:
    """A task runs from the moment that it waits no more, also while a span processor takes its time."""
    found: list[UnfinishedTask] = []

    class Asking(SpanProcessor):
        def on_start(self, span: object, parent_context: object = None) -> None:
            found.extend(unfinished_tasks())

    provider = TracerProvider()
    provider.add_span_processor(Asking())
    queue = TracedBackgroundTasks(tracing=TaskTracing(tracer_provider=provider))
    queue.add_task(notify)
    await queue()

    assert states(found) == [("notify", "running")]


async def test_classes_of_a_users_own() -> None:
    """A subclass is found, and what a plain task has under a name that ours have too is left alone."""

    class Own(TracedBackgroundTask): ...

    class Plain(BackgroundTask):
        running_since = handover = captured_variables = "its own"

        def __init__(self, func: Callable[..., None]) -> None:
            super().__init__(func)
            self.running_since = self.handover = self.captured_variables = "its own"

    queue = TracedBackgroundTasks([Own(notify), Plain(notify)])
    assert states(unfinished_tasks()) == [("notify", "waiting"), ("notify", "waiting")]
    await queue()
    assert unfinished_tasks() == []


def test_an_exception_of_the_block(signals: list[str], lines: Lines) -> None:
    """An exception goes through the block, and leaves nothing of it behind."""

    def fail() -> None:
        with report_unfinished_tasks():
            raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            fail()
    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        pass
    anyio.run(task)

    assert lines() == [AT_THE_END]


def test_a_block_that_ends_in_another_thread(lines: Lines) -> None:
    """A block that another thread ends, as the collector of a generator may, is over, and the next one reports."""
    earlier = signal.getsignal(signal.SIGTERM)
    block = report_unfinished_tasks()
    block.__enter__()
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    signal.signal(signal.SIGTERM, earlier)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        pass
    anyio.run(task)

    assert lines() == [AT_THE_END]


def test_a_thread_that_cannot_be_had(signals: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, there is no report, and that is all."""

    def start(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with report_unfinished_tasks():
        signal.raise_signal(signal.SIGTERM)

    assert signals == ["SIGTERM"]


def test_a_log_handler_that_fails(signals: list[str], lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log handler that fails takes nothing along but its own line."""
    reported: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        reported.append(record.getMessage().partition(":")[0])
        raise LookupError

    monkeypatch.setattr(lines, "emit", emit)
    task = TracedBackgroundTask(notify)
    with report_unfinished_tasks():
        signal.raise_signal(signal.SIGTERM)
    anyio.run(task)

    assert reported == [f"{UNFINISHED} SIGTERM", AT_THE_END]


def test_what_a_servers_handler_is_given(lines: Lines) -> None:
    """The handler that was there is called with the signal and the frame that it came upon, as trio's needs it."""
    given: list[object] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: given.extend((number, type(frame))))
    with report_unfinished_tasks():
        signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, earlier)

    assert given == [signal.SIGTERM, FrameType]


async def test_twenty_tasks(signals: list[str], lines: Lines) -> None:
    """Twenty tasks are all named."""
    queue = TracedBackgroundTasks()
    for number in range(20):
        queue.add_task(notify, number)
    with report_unfinished_tasks():
        pass
    await queue()

    (line,) = lines.records
    assert line.getMessage().count("notify (waiting for ") == 20
    assert "more" not in line.getMessage()
