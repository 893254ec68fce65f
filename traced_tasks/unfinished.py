"""The tasks of this process that wait or run, and a report of them when the process is told to stop.

Rule 1: A signal's handler interrupts code that may hold any lock. It logs nothing and starts no thread. It puts a word
into a queue, for a thread that waits for one already.

Rule 2: The process stops as before. The handler that was there is called behind ours, and set again where the block
ends.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from time import perf_counter
from typing import Any, Literal

from opentelemetry import trace

from traced_tasks._background import TracedBackgroundTask
from traced_tasks._lost import reporter
from traced_tasks._providers import at_fork

__all__ = ["UnfinishedTask", "report_unfinished_tasks", "unfinished_tasks"]

_SHOWN = 20
_AT_SIGNAL = 1.0  # s, for the report before a signal's default happens
_AT_END = 5.0  # s, for that at the end of the block
_PAUSE, _PART = 0.1, 20  # s, or so many times what a look takes, from one look to the next

_logger = logging.getLogger("traced_tasks")


@dataclass(frozen=True, slots=True)
class UnfinishedTask:
    """A background task that still waits or runs."""

    function: str
    """The name of its function, as in `code.function.name`."""

    state: Literal["waiting", "running"]
    """`"running"` once its function has been called."""

    seconds: float
    """How long it has waited, since `add_task`, or how long it has run, since its start."""

    trace_id: str | None
    """While it runs, that of its span. Otherwise, or without a provider, that of the span current at `add_task`.

    32 hex digits, or `None` if there is no span."""


def unfinished_tasks() -> list[UnfinishedTask]:
    """Return the tasks of this process that wait or run, in the order of `add_task`, the oldest first.

    It costs nothing until you call it. Then it asks the garbage collector for the tasks. If one seems to wait, it
    collects garbage first, because a task that an unhandled exception has left behind is lost and does not wait.
    """
    found = look()
    if any(task.state == "waiting" for task in found):
        del found
        gc.collect()
        found = look()
    return found


def look() -> list[UnfinishedTask]:
    """Return the tasks of this process that are waiting or running, or were left behind, those added first first."""
    found: list[UnfinishedTask] = []
    for task, state, seconds in found_tasks():
        span: trace.Span | None = getattr(task, "running_span", None)  # its engine's instrumentation may make it
        trace_id = _trace_id(span or trace.INVALID_SPAN) or _trace_id(trace.get_current_span(task.context))
        found.append(UnfinishedTask(task.instruments.name, state, seconds, trace_id))
    return found


def found_tasks() -> list[tuple[TracedBackgroundTask, Literal["waiting", "running"], float]]:
    """Return the tasks themselves. Who keeps one keeps it from being dropped."""
    now, forked_at = perf_counter(), max(_forks, default=0)
    # Not all objects of the process: what another thread lets go of meanwhile would end in this one.
    found_by_class: list[Any] = gc.get_referrers(*_classes(TracedBackgroundTask))
    tasks = [each for each in found_by_class if issubclass(type(each), TracedBackgroundTask)]
    del found_by_class
    waiting = {ticket for one in {task.instruments for task in tasks} for ticket in tuple(one.waiting.values())}
    found: list[tuple[TracedBackgroundTask, Literal["waiting", "running"], float]] = []
    for task in sorted(tasks, key=_age):
        since: float | None = getattr(task, "running_since", None)  # one in the making has nothing yet
        if since is not None and since >= forked_at:
            found.append((task, "running", now - since))
        elif id(task) in waiting:
            found.append((task, "waiting", now - (task.queued_at or now)))
    return found


def _classes(cls: type[TracedBackgroundTask]) -> Iterator[type[TracedBackgroundTask]]:
    yield cls
    for each in cls.__subclasses__():
        yield from _classes(each)


def _age(task: TracedBackgroundTask) -> float:
    return vars(task).get("queued_at") or 0.0  # it may be in the making, in another thread


def _trace_id(span: trace.Span) -> str | None:
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


_forks: list[float] = []  # when this process was forked off: what ran then runs elsewhere


@contextmanager
def report_unfinished_tasks() -> Generator[None]:
    """Log the tasks that still wait or run when the process is told to stop.

    Put it around the `yield` of a lifespan:

    ```python
    @asynccontextmanager
    async def lifespan(app: FastAPI):
        with report_unfinished_tasks():
            yield
    ```

    On SIGTERM and SIGINT the logger `traced_tasks` writes a warning. It has the signal, the numbers of tasks that run
    and that wait (as `extra` too: `background_task.running`, `background_task.waiting`), and the oldest 20 tasks, each
    with its state and seconds. Then the server's own handler is called, as it is without this. When the tasks have
    ended, an `INFO` line says so. If some are unfinished when the block ends, with or without a signal, a warning names
    them. It does nothing outside of the main thread, inside of another such block, on a signal that is ignored, and on
    a second signal.
    """
    if current_thread() is not main_thread() or _reports:
        yield
        return
    report = _Report()
    _reports.append(report)
    try:
        report.begin()
        yield
    finally:
        _reports.clear()
        report.end()


class _Report:
    def __init__(self) -> None:
        self._process = os.getpid()
        self._events: SimpleQueue[str | None] = SimpleQueue()  # a signal's name, or `None` for the end of the block
        self._told: SimpleQueue[None] = SimpleQueue()  # of the first of them
        self._thread = Thread(target=self._work, name="traced_tasks unfinished", daemon=True)
        self._earlier: dict[int, Any] = {}

    def begin(self) -> None:
        with suppress(RuntimeError):  # there is no thread to be had
            self._thread.start()
        for name in ("SIGTERM", "SIGINT") if self._thread.is_alive() else ():
            if (number := getattr(signal, name, None)) is not None:
                earlier = signal.getsignal(number)
                if earlier is not None and earlier is not signal.SIG_IGN:  # `None`: that of C code
                    self._earlier[number] = earlier
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        earlier, has_thread = self._earlier[number], os.getpid() == self._process  # none in one that was forked off
        if has_thread:
            self._events.put(signal.Signals(number).name)
        if callable(earlier):
            earlier(number, frame)
            return
        with suppress(Empty):
            self._told.get(timeout=_AT_SIGNAL if has_thread else 0)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def end(self) -> None:
        self._events.put(None)
        for number, earlier in self._earlier.items():
            # A generator that was left behind may end in another thread, where no handler can be set.
            if current_thread() is main_thread() and signal.getsignal(number) == self._handle:
                signal.signal(number, earlier)
        if self._thread.is_alive() and not sys.is_finalizing():  # Python does not wait for it then
            self._thread.join(_AT_END)
        reporter.flush(_AT_END)  # what the stop has lost: the SDK may be shut down behind the block, and no exit follow

    def _work(self) -> None:
        event = stop = self._events.get()
        waits = stop is not None and _warn(stop)
        self._told.put(None)
        while event is not None:
            looked_at = perf_counter()
            if waits and not look():
                waits = _tell_end(stop)
            pause = max(_PAUSE, _PART * (perf_counter() - looked_at)) if waits else None
            with suppress(Empty):
                event = self._events.get(timeout=pause)
        if not _warn("the end of the application") and waits:
            _tell_end(stop)


def _warn(when: str) -> bool:
    """Report the tasks that are unfinished, and return whether there are any."""
    tasks = unfinished_tasks()
    running = sum(task.state == "running" for task in tasks)
    counts = {"background_task.running": running, "background_task.waiting": len(tasks) - running}
    shown = [f"{task.function} ({task.state} for {task.seconds:.1f} s)" for task in tasks[:_SHOWN]]
    if len(tasks) > _SHOWN:
        shown.append(f"and {len(tasks) - _SHOWN} more")
    if tasks:
        message = "Unfinished background tasks at %s: %d running, %d waiting: %s."
        with suppress(Exception):  # of a log handler
            _logger.warning(message, when, *counts.values(), ", ".join(shown), extra=counts)
    return bool(tasks)


def _tell_end(when: str | None) -> bool:
    with suppress(Exception):  # of a log handler
        _logger.info("The background tasks that were unfinished at %s have ended.", when)
    return False


def _forked() -> None:
    _forks.append(perf_counter())
    _reports.clear()


_reports: list[_Report] = []
at_fork(after_in_child=_forked)
