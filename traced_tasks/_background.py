"""The queue and the task, standing beside those of `starlette.background`.

Rule 1: Nothing is called here that others patch, or a task would have a second span: no `super().add_task()`
(ddtrace), no `super().__call__()` (opentelemetry-instrumentation-fastapi). New Relic's transactions are let in.

Rule 2: FastAPI runs the queue that it made for a request, and none that a dependency returns. So that object itself
becomes ours, by its `__class__`: one object, of one request. Its list stays the same list, which others may hold.

Rule 3: A task that waits has a ticket in `instruments.waiting`. Whoever takes it answers for the task: its queue, in
`skip`; `__del__`, when it is thrown away; or `run`, which for a `def` task writes a second one for its thread to take.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context as Variables
from contextvars import copy_context
from inspect import CO_COROUTINE, iscoroutine
from time import perf_counter
from types import FunctionType
from typing import Any, ParamSpec, Self, Unpack

from fastapi import BackgroundTasks
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks

from traced_tasks._engines import Engine, engine_task
from traced_tasks._lost import lose
from traced_tasks._metrics import FunctionInstruments, unmeasured
from traced_tasks._names import error_type
from traced_tasks._options import TaskOptions, TaskOptionsDict, checked
from traced_tasks._run import raise_again, run
from traced_tasks._telemetry import instruments_for

P = ParamSpec("P")

_DROPPED = (
    "nothing ran it. For example, the handler raised after add_task, the request was refused, the response failed or "
    "has a background of its own, the route is a websocket, the queue was given to no response, or the task is of a "
    "class that did not call super().__call__()"
)


class TracedBackgroundTask(BackgroundTask):
    """A background task that runs inside a span of its own.

    It runs in the context that is current when you make it. Use it as you use Starlette's:

    ```python
    return JSONResponse({}, background=TracedBackgroundTask(notify, 42))
    ```

    A subclass calls `super().__call__()` to run the function. Before, after and around that it may do what it likes.

    Args:
        func: The function to call, `def` (called in a worker thread) or `async def`.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        TypeError: `func` is not callable.
    """

    tracing: TaskOptions
    context: Context
    captured_variables: Variables | None = None
    queued_at: float | None
    handover: tuple[Engine, Any] | None = None
    running_since: float | None
    running_span: Span | None
    instruments: FunctionInstruments = unmeasured.of(None, "TracedBackgroundTask")

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        self._capture(func, args, kwargs, checked(None))

    def _capture(self, func: Any, args: Any, kwargs: Any, tracing: TaskOptions, is_async: bool | None = None) -> None:
        self.func, self.args, self.kwargs, self.tracing = func, args, kwargs, tracing
        is_function = type(func) is FunctionType
        found = None if is_function else engine_task(func)
        # As Starlette tells it, which would take as long as all else here.
        if is_async is not None:
            self.is_async = is_async
        elif is_function and func.__code__.co_flags & CO_COROUTINE:
            self.is_async = True
        elif is_function and not func.__dict__:  # nobody has marked it as async
            self.is_async = False
        elif found is None and not callable(func):
            raise _not_callable(func)
        elif found is None or found[2]:
            self.is_async = BackgroundTask(func).is_async
        self.context = otel_context.get_current()
        if tracing.context_variables:
            self.captured_variables = copy_context()
        self.running_since = self.running_span = None  # now: a late attribute makes an object slow in Python 3.12
        self.queued_at = perf_counter()
        function = func if found is None else found[0].function(found[1])
        self.instruments = instruments = instruments_for(function, tracing.meter_provider)
        if found is not None:
            self._capture_engine_task(*found, function)
        ticket = id(self)
        instruments.waiting[ticket] = ticket

    def _capture_engine_task(self, engine: Engine, task: Any, by_method: bool, function: Any) -> None:
        if self.tracing.broker is not None and engine.broker(task) is self.tracing.broker:
            self.handover = engine, task
            self.is_async = not engine.blocks
        elif not by_method:
            self.is_async = BackgroundTask(function).is_async
            self.func = function if self.is_async and engine.blocks else task

    __call__ = run  # pyright: ignore[reportAssignmentType]

    def skip(self, reason: str) -> None:
        """Report that the task will not run, unless it has run."""
        if self.instruments.waiting.pop(id(self), None):
            lose(self, "skipped", reason)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if id(self) in self.instruments.waiting and not is_finalizing():
            del self.instruments.waiting[id(self)]
            lose(self, "dropped", _DROPPED)


class TracedBackgroundTasks(BackgroundTasks):
    """The background tasks of a response, each inside a span of its own.

    The annotation `traced_tasks.TracedBackgroundTasks` gives a handler the queue of its request. A queue made by hand
    goes where Starlette's goes: `Response(background=...)`.

    Args:
        tasks: Tasks to start with. A plain one is traced as well, in the context that is current now. A traced one
            keeps its own options.
        tracing: The options. Default: `TaskTracing()`.

    Raises:
        TypeError: `tracing` is not a `TaskTracing`.
    """

    tracing: TaskOptions

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None, *, tracing: TaskOptions | None = None) -> None:
        self.tracing = checked(tracing)
        super().__init__([_traced(task, self.tracing) for task in tasks or ()])

    @classmethod
    def adopt(cls, queue: BackgroundTasks, tracing: TaskOptions) -> Self:
        """Make a queue of FastAPI's a traced one, with what it holds, and return it, or a view on it if it is one."""
        if isinstance(queue, TracedBackgroundTasks):
            return queue if isinstance(queue, cls) and queue.tracing == tracing else cls._view(queue, tracing)
        queue.__class__ = cls
        assert isinstance(queue, cls)
        queue.tracing = tracing
        queue.tasks[:] = [_traced(task, tracing) for task in queue.tasks]
        return queue

    @classmethod
    def _view(cls, queue: "TracedBackgroundTasks", tracing: TaskOptions) -> Self:
        view = cls.__new__(cls)
        vars(view).update(vars(queue), tracing=tracing)
        return view

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a function to call after the response is sent, in the context that is current now.

        Args:
            func: The function to call, `def` (called in a worker thread) or `async def`.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError: `func` is not callable.
        """
        # Not by the class, whose keywords are the function's.
        task = object.__new__(TracedBackgroundTask)
        task._capture(func, args, kwargs, self.tracing)  # pyright: ignore[reportPrivateUsage]
        self.tasks.append(task)

    def with_options(self, **changes: Unpack[TaskOptionsDict]) -> Self:
        """Return a view on the same queue and the same list. Tasks added through it have other options.

        Args:
            **changes: Options of `TaskTracing`. `attributes` are merged with the queue's, and `links` are appended to
                the queue's. Every other option replaces the queue's.

        Raises:
            pydantic.ValidationError: An option is unknown or its value is of the wrong type.
        """
        return self._view(self, self.tracing.merge(changes))

    async def __call__(self) -> None:
        raised: list[BaseException] = []
        reason = ""
        remaining = iter(self.tasks)
        for each in remaining:
            task = each if type(each) is TracedBackgroundTask else _traced(each, self.tracing)
            try:
                await task()
                continue
            except BaseException as error:
                raised.append(error)
            # Outside of the `except`, as a run ends, so that nothing that reports carries the exception along.
            error_name, name = error_type(raised[-1]), "a queue"
            if isinstance(task, TracedBackgroundTask):
                name = task.instruments.name
                # Its own class may have raised before it called ours.
                task.skip(f"it failed with {error_name} before its function was called")
            if not isinstance(raised[-1], Exception) or _is_thrown_away(raised[-1]):
                reason = f"its queue was cut short by {error_name} at {name}"
                break
            if task.tracing.on_error == "stop":
                reason = f"{name}, before it in the queue, failed with {error_name}"
                break
        if not raised:
            return
        if reason:
            self.skip(reason, remaining)
        if not isinstance(raised[-1], Exception) or (reason and len(raised) == 1):
            end: list[BaseException] = [raised[-1]]  # as Starlette raises it
        else:
            end = [BaseExceptionGroup("background tasks failed", [*raised])]
        raised.clear()
        raise_again(end)

    def skip(self, reason: str, tasks: Iterable[BackgroundTask] | None = None) -> None:
        """Report that those of the tasks, or of some of them, that have not run will not run."""
        for task in tuple(self.tasks if tasks is None else tasks):  # what a task_hook adds now is not lost yet
            if task is not self:
                _traced(task, self.tracing).skip(reason)


def _is_thrown_away(error: BaseException | None) -> bool:
    """Whether it is what has become of a `GeneratorExit`, so that nothing may be awaited any more."""
    while error is not None and type(error) is not GeneratorExit:
        error = error.__context__
    return error is not None


def _traced(task: BackgroundTask, tracing: TaskOptions) -> TracedBackgroundTask | TracedBackgroundTasks:
    if isinstance(task, (TracedBackgroundTask, TracedBackgroundTasks)):
        return task
    if isinstance(task, StarletteBackgroundTasks) and type(task) in (BackgroundTasks, StarletteBackgroundTasks):
        queue = TracedBackgroundTasks(tracing=tracing)
        vars(queue).update(tasks=task.tasks)  # the list itself, which may still grow
        return queue
    # A new one, for it may be queued by many requests, and without its __init__, which may refuse what is in it.
    traced = object.__new__(TracedBackgroundTask)
    if next((cls for cls in type(task).__mro__ if "__call__" in vars(cls)), None) is BackgroundTask:
        vars(traced).update(vars(task), captured_variables=None, handover=None)
        traced._capture(task.func, task.args, task.kwargs, tracing, task.is_async)  # pyright: ignore[reportPrivateUsage]
    else:  # it runs in a way of its own
        traced._capture(task, (), {}, tracing, True)  # pyright: ignore[reportPrivateUsage]
    return traced


def _not_callable(given: Any) -> TypeError:
    what = repr(given)
    if iscoroutine(given):
        given.close()  # or Python warns as well that it was never awaited
        what = f"a coroutine, add_task({given.__name__}(42))"
    return TypeError(f"add_task takes a function and its arguments, add_task(notify, 42), not {what}")
