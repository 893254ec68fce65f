"""Record background tasks, and what became of them, in the tests of an application.

```python
from traced_tasks.testing import record_tasks

with record_tasks() as tasks:
    client.post("/checkout")
task = tasks.one(notify)
assert (task.outcome, task.kwargs) == ("completed", {"user_id": 42})
```

With pytest there is a fixture, `recorded_tasks`, by `pytest_plugins = ["traced_tasks.testing"]` in `conftest.py`. (This
may be imported before: PYTEST_DONT_REWRITE.)

Rule 1: A task that nobody records pays nothing. The hooks are put in while somebody records, or a recorded task runs.

Rule 2: A task refers to its record, and no record to its task, because that would keep the task from being dropped. The
arguments of a task may refer to its queue, so the record of a waiting task lets go of them while garbage is collected.
"""

import gc
import reprlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from threading import RLock
from time import perf_counter, sleep
from types import MethodType, TracebackType
from typing import Any, Literal, Self, overload
from weakref import ref

from opentelemetry.context import Context

from traced_tasks import _lost, _run
from traced_tasks._background import TracedBackgroundTask
from traced_tasks._engines import engine_task
from traced_tasks._names import error_type
from traced_tasks._options import TaskOptions

__all__ = ["RecordedTask", "RecordedTasks", "record_tasks"]

Outcome = Literal["completed", "failed", "skipped", "dropped", "never_awaited", "never_iterated", "unconfirmed", "held"]
_FLUSH = 10.0  # s
_PAUSES = 0.001, 0.02  # s, for a worker thread to forget the job that it has just reported, and what that refers to


@dataclass(eq=False)
class RecordedTask:
    """A background task that was added, and what became of it."""

    func: Callable[..., Any]
    """What was given to `add_task`."""

    args: Sequence[Any]
    """Its positional arguments."""

    kwargs: Mapping[str, Any]
    """Its keyword arguments."""

    function: str
    """The name of its function, as in `code.function.name`."""

    tracing: TaskOptions
    """Its options: those of its route, changed by `with_options`."""

    context: Context
    """OpenTelemetry's context that it runs in."""

    outcome: Outcome | None = None
    """What became of it. `None`: it waits, or runs.

    `"completed"`; `"failed"` if its function raised; `"held"` if it was not meant to run. All others are losses, named
    like the `error.type` of their spans. A task for an engine's workers has the outcome of its hand-over, one that runs
    more than once that of its last run."""

    exception: BaseException | None = None
    """What its function or its hand-over raised."""

    reason: str | None = None
    """Why it was lost."""

    queue_duration: float | None = None
    """How long it waited, in seconds. `None` if its function was not called."""

    duration: float | None = None
    """How long it ran, in seconds. `None` until it has ended."""

    def __repr__(self) -> str:
        given = [
            *map(reprlib.repr, self.args),
            *(f"{name}={reprlib.repr(value)}" for name, value in self.kwargs.items()),
        ]
        became: str = self.outcome or ("waits" if self.queue_duration is None else "runs")
        if self.exception is not None:
            became += f" with {error_type(self.exception)}"
        return f"{self.function}({', '.join(given)}) {became}"


class RecordedTasks(Sequence[RecordedTask]):
    """The tasks that were added in a block, in the order of `add_task`."""

    def __init__(self, *, held: bool, allow_lost: bool) -> None:
        self.held = held
        """Whether tasks that are added from now on are held."""
        self.allow_lost = allow_lost
        """Whether tasks may be lost."""
        self._records: list[RecordedTask] = []
        self._entered = False

    def of(self, func: Callable[..., Any]) -> list[RecordedTask]:
        """Return the tasks of a function, of a `functools.partial` of it, and of an engine's task made from it.

        A method taken from its class, `Shop.notify`, finds the tasks of all objects of that class.

        Raises:
            TypeError: `func` cannot be called.
        """
        if not callable(func):
            raise TypeError(f"tasks are found by the function that was given to add_task, not by {func!r}")
        wanted = _meant(func)
        return [record for record in self._records if wanted in _names(_meant(record.func))]

    def one(self, func: Callable[..., Any]) -> RecordedTask:
        """Return the one task of a function.

        Raises:
            AssertionError: There is none, or more than one. The message lists what there was.
            TypeError: `func` cannot be called.
        """
        __tracebackhide__ = True  # pytest shows the line of the test
        found = self.of(func)
        if len(found) == 1:
            return found[0]
        name = getattr(func, "__qualname__", None) or repr(func)
        there_was = _lines(self._records) if self._records else " nothing. (Only routes that opt in are recorded.)"
        raise AssertionError(f"{len(found) or 'no'} tasks of {name} were added, not one. There was:{there_was}")

    def flush(self) -> None:
        """Report dropped tasks now, also those that only the next garbage collection would find."""
        _hooks.flush(tuple(self._records))

    @overload
    def __getitem__(self, index: int) -> RecordedTask: ...

    @overload
    def __getitem__(self, index: slice) -> list[RecordedTask]: ...

    def __getitem__(self, index: int | slice) -> RecordedTask | list[RecordedTask]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"<RecordedTasks: {self._records!r}>"

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError("record_tasks() is for one block: call it again for another one")
        self._entered = True
        with _hooks.lock:
            _hooks.recorders.append(self)
            _hooks.put()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        __tracebackhide__ = True
        if self not in _hooks.recorders:
            raise RuntimeError("this block of record_tasks() was left before, or never entered")
        if error is None:
            self.flush()
        with _hooks.lock:
            _hooks.recorders.remove(self)
            _hooks.put()
        if error is None:
            self._check()

    def _check(self) -> None:
        __tracebackhide__ = True
        ended = ("completed", "failed", "held", None)
        lost = [] if self.allow_lost else [record for record in self._records if record.outcome not in ended]
        waiting = [each for each in self._records if each.outcome is None and each.queue_duration is None]
        messages: list[str] = []
        if lost:
            messages.append(
                f"{_count(lost)} lost:{_lines(lost)}\nIf that is meant: record_tasks(allow_lost=True), or "
                "recorded_tasks.allow_lost = True."
            )
        if waiting:
            messages.append(
                f"{_count(waiting)} still waiting, neither run nor lost:{_lines(waiting)}\nSomething refers to it: "
                "a queue that nobody ran, perhaps, or `pytest.raises(...) as info`, which keeps an exception, its "
                "frames, and what they refer to. Leave out the `as info`, or `del info` in the block. In an async test "
                "the event loop refers to what a `def` handler has just raised: `await anyio.sleep(0)` in the block."
            )
        if messages:
            raise AssertionError("\n".join(messages))


def record_tasks(*, held: bool = False, allow_lost: bool = False) -> RecordedTasks:
    """Record the background tasks added in a `with` block, by any route, thread and event loop of the process.

    At the end of the block, dropped tasks are reported. It needs no SDK, and leaves the providers alone.

    Args:
        held: `True`: tasks are recorded and do not run.
        allow_lost: `False`: a lost task is an error.

    Raises:
        AssertionError: At the end of the block a task was lost or still waits. An exception of the block goes first.
        RuntimeError: The block is entered or left twice.
    """
    return RecordedTasks(held=held, allow_lost=allow_lost)


with suppress(ImportError):
    import pytest

    _raised = pytest.StashKey[bool]()

    class _FailedError(Exception): ...

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note whether the test has failed so far, for the fixture."""
        item.stash[_raised] = call.excinfo is not None

    @pytest.fixture
    def recorded_tasks(request: pytest.FixtureRequest) -> Generator[RecordedTasks]:
        """Record the background tasks of a test, as `record_tasks()` does. `held` and `allow_lost` can be set."""
        with suppress(_FailedError), record_tasks() as tasks:
            yield tasks
            if request.node.stash.get(_raised, False):
                raise _FailedError  # as an exception of the block, which goes first


def _meant(func: Any) -> Any:
    while True:
        if (found := engine_task(func)) is not None:
            func = unwrap(found[0].function(found[1]))  # of what a worker in this process has put around it
        elif issubclass(type(func), partial):
            func = func.func
        else:
            return func


def _names(meant: Any) -> tuple[Any, ...]:
    return (meant, meant.__func__) if type(meant) is MethodType else (meant,)


def _count(records: Sequence[RecordedTask]) -> str:
    return f"{len(records)} background task{' was' if len(records) == 1 else 's were'}"


def _lines(records: Sequence[RecordedTask]) -> str:
    return "".join(f"\n  {each!r}{f': {each.reason}' if each.reason else ''}" for each in records)


class _Held(TracedBackgroundTask):
    async def __call__(self) -> None:
        self.instruments.waiting.pop(id(self), None)
        _hooks.record(self)


def _held(cls: Any) -> type[TracedBackgroundTask]:
    if cls is TracedBackgroundTask or hasattr(cls.__init_subclass__, "__func__"):  # which may register or refuse them
        return _Held

    class Held(_Held, cls):  # type: ignore[misc]
        """A task of a user's own class, with all that this has, but for what it does when it is called."""

    return Held


def _let_go() -> None:
    """Stand in for the function of a task that waits, while garbage is collected."""


_Recorded = tuple[RecordedTask, tuple[Any, Any, Any]]
"""The record of a task, and the function and the arguments that were given to it."""


class _Hooks:
    """What stands in for the functions of this package through which each task goes, and calls them."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.recorders: list[RecordedTasks] = []
        self._waiting: dict[RecordedTask, ref[TracedBackgroundTask]] = {}
        self._running: set[RecordedTask] = set()
        self._capture = TracedBackgroundTask._capture  # pyright: ignore[reportPrivateUsage]
        self._start, self._end, self._report = _run.start, _run.end, _lost.report

    def put(self) -> None:
        """Put the hooks in, or take them out if nobody records and nothing recorded runs."""
        records = bool(self.recorders)
        if not records:
            self._waiting.clear()
        TracedBackgroundTask._capture = self._capture_hook() if records else self._capture  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        records = records or bool(self._running)
        _run.start = self.start if records else self._start
        _run.end = self.end if records else self._end
        _lost.report = self.report if records else self._report

    def _capture_hook(self) -> Any:
        def capture(task: TracedBackgroundTask, func: Any, args: Any, kwargs: Any, *others: Any) -> None:
            self._capture(task, func, args, kwargs, *others)
            record = RecordedTask(func, args, kwargs, task.instruments.name, task.tracing, task.context)
            recorders = tuple(self.recorders)
            if any(each.held for each in recorders):
                record.outcome = "held"
                task.__class__ = _held(type(task))
            vars(task)["_recorded"] = record, (func, args, kwargs)
            self._waiting[record] = ref(task)
            for each in recorders:
                each._records.append(record)  # pyright: ignore[reportPrivateUsage]

        return capture

    def record(self, task: object) -> RecordedTask | None:
        """Return the record of a task that waits no more, if it has one."""
        recorded: _Recorded | None = vars(task).get("_recorded")
        if recorded is None:
            return None
        record, given = recorded
        record.func, record.args, record.kwargs = given
        self._waiting.pop(record, None)
        return record

    def flush(self, records: Sequence[RecordedTask]) -> None:
        """Collect garbage, also what these records refer to (rule 2), and report what was dropped."""
        with self.lock:
            waiting = [(record, found) for record in records if (found := self._waiting.get(record)) is not None]
            for record, _ in waiting:
                record.func, record.args, record.kwargs = _let_go, (), {}
        gc.collect()
        for pause in _PAUSES:
            if all(found() is None for _, found in waiting):
                break
            sleep(pause)
            gc.collect()
        _lost.reporter.flush(_FLUSH)
        for record, found in waiting:
            if (task := found()) is not None:
                record.func, record.args, record.kwargs = vars(task)["_recorded"][1]

    def start(self, task: Any, ago: float = 0) -> _run.Run:
        with self.lock:
            record = self.record(task)
            if record is not None:
                record.queue_duration = perf_counter() - task.queued_at
                self._running.add(record)
                self.put()
        return self._start(task, ago)

    def end(
        self, run: _run.Run, result: Any, raised: Sequence[BaseException] = (), ended: tuple[float, int] | None = None
    ) -> None:
        duration = perf_counter() - run[1] if ended is None else ended[0]
        try:
            self._end(run, result, raised, ended)
        finally:  # the outcome is known when all has been told
            record = self.record(run[0])
            if record is not None and record in self._running:
                record.duration = duration
                self._outcome(record, run[7], result, raised)
                with self.lock:
                    self._running.discard(record)
                    self.put()

    def _outcome(self, record: RecordedTask, handover: Any, result: Any, raised: Sequence[BaseException]) -> None:
        never: Any = None if raised or handover is not None else _run.never_ran(result)
        record.outcome = never or "completed"
        record.reason = _run.REASONS.get(never)
        record.exception = raised[0] if raised else None
        if raised:
            record.outcome = "failed"
            if handover is not None and not handover.runs_here:
                record.outcome = "unconfirmed"
                record.reason = f"to hand it over to {handover.system} failed, so that it may have arrived, or not"

    def report(self, task: Any, error: Any, reason: str, lost_at: int) -> None:
        record = self.record(task)
        try:
            self._report(task, error, reason, lost_at)
        finally:
            if record is not None:
                record.outcome, record.reason = error, reason


_hooks = _Hooks()
