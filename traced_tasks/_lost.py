"""Reports a task that never ran, from wherever that is noticed.

Rule 1: A loss is reported at once, by whoever notices it.

Rule 2: Not in a garbage collection, though, which may begin while the interrupted code holds a lock that the report
needs, of an exporter or a log handler. Then it is reported on a thread.

Rule 3: Nor more than a hundred a second, or thousands of tasks behind one that failed would hold up the event loop.
The others are reported on the thread.

Rule 4: A process that was forked off has none of its parent's tasks to lose, and a thread of its own.
Rule 5: Once Python is finalizing nothing is reported. What was left to the thread before is waited for.
"""

import atexit
import gc
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic, perf_counter, time_ns
from typing import Any, Literal

from opentelemetry import context as otel_context
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode

from traced_tasks._providers import at_fork
from traced_tasks._telemetry import Task, call_hook, guarded, start_span, warn

_AT_ONCE = 100  # a second
_AT_EXIT = 5.0  # s


def lose(task: Task, error: Literal["skipped", "dropped"], reason: str) -> None:
    """Report a task that never ran: by a warning that says why, a span from `add_task` on, and one on the counter."""
    reporter(report, task, error, reason, time_ns())


def report(task: Task, error: str, reason: str, lost_at: int) -> None:
    span: Span = INVALID_SPAN
    context = task.context
    with guarded("The loss of the background task %s could not be traced.", task):
        waited = 0 if task.queued_at is None else perf_counter() - task.queued_at
        span, context = start_span(task, task.tracing, "error.type", error, time_ns() - int(waited * 1e9))
    token = otel_context.attach(context)
    warn(task, error, "The background task %s was %s: %s.", task.instruments.name, error, reason)
    with guarded("The loss of the background task %s could not be traced.", task):
        span.set_attribute("error.type", error)  # also if the options have one
        if task.tracing.task_hook is not None:
            call_hook(task, span, BaseException)  # there is nothing running that one could end
        span.set_status(StatusCode.ERROR, reason)
        span.end(lost_at)
    with guarded("The loss of the background task %s could not be measured.", task):
        task.instruments.lose(error)
    otel_context.detach(token)


class Reporter:
    """Makes calls that report: at once, or on its thread."""

    def __init__(self) -> None:
        self._collecting: int | None = None
        self._second, self._count = 0.0, 0
        self._forked()
        gc.callbacks.append(self._watch)
        at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = SimpleQueue()
        self._started = threading.Lock()  # taken by who starts the thread, and kept

    def __call__(self, call: Callable[..., object], *args: Any) -> None:
        """Call now, or on the thread, or not at all if Python is finalizing."""
        if sys.is_finalizing():
            return
        now = monotonic()
        if now - self._second >= 1:
            self._second, self._count = now, 0
        self._count += 1
        if not self.is_collecting() and self._count <= _AT_ONCE:
            call(*args)
            return
        self._calls.put((call, args))  # reentrant, as that of no other queue
        if self._started.acquire(blocking=False):
            try:
                threading.Thread(target=self._work, name="traced_tasks", daemon=True).start()
            except RuntimeError:  # no thread to be had, for now: the next call may get one
                self._started.release()
            else:
                # Now, and not at import: what is registered last is called first, and an SDK shuts down at exit, too.
                atexit.register(self.flush, _AT_EXIT)

    def is_collecting(self) -> bool:
        return self._collecting == threading.get_ident()

    def _watch(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002
        self._collecting = threading.get_ident() if phase == "start" else None

    def _work(self) -> None:
        calls = self._calls
        while True:
            call, args = calls.get()
            with suppress(BaseException):  # there is no other thread to report what comes after
                call(*args)
            del call, args

    def flush(self, timeout: float) -> None:
        """Wait for what was left to the thread so far, at most `timeout` seconds."""
        if self._started.locked():
            reported = threading.Event()
            self._calls.put((reported.set, ()))
            reported.wait(timeout)


reporter = Reporter()
