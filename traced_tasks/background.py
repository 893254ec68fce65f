"""The queue and the task, standing beside those of `starlette.background`."""

import functools
from collections.abc import Callable, Iterable, Sequence
from inspect import CO_COROUTINE, iscoroutine
from time import perf_counter
from types import FunctionType
from typing import Any, Literal, ParamSpec, Self, Unpack

from anyio.lowlevel import checkpoint_if_cancelled
from fastapi import BackgroundTasks
from opentelemetry import context as otel_context
from starlette._utils import is_async_callable
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.concurrency import run_in_threadpool

from traced_tasks import telemetry
from traced_tasks.finalizers import finalizers
from traced_tasks.names import error_type, function_names
from traced_tasks.options import TaskOptions, TaskOptionsDict

P = ParamSpec("P")

_DROPPED = (
    "nothing ran it. For example, the handler raised after add_task, the request was refused, the response failed or "
    "has a background of its own, the route is a websocket, or the queue was given to no response"
)

_DEFAULT = TaskOptions()


class TracedBackgroundTask(BackgroundTask):
    """A background task that runs inside a span of its own.

    The context that is current when it is made is the one it runs in. Starlette's way to use one:

    ```python
    return JSONResponse({}, background=TracedBackgroundTask(notify, 42))
    ```

    Args:
        func: The function to call, `def` (called in a worker thread) or `async def`.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        TypeError: `func` is not callable.
    """

    _pending = 0  # else the generation of processes in which it is waiting to run

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        call: Any = cls.__call__
        if call is TracedBackgroundTask.__call__:
            return

        async def called(self: Self) -> None:
            self._pending = 0  # it may not call ours
            await call(self)

        functools.update_wrapper(called, call)
        cls.__call__ = called  # type: ignore[method-assign]

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        self._capture(func, args, kwargs, _DEFAULT)

    def _capture(self, func: Any, args: Any, kwargs: Any, tracing: TaskOptions) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        # The first two ways are short cuts of the third, which takes 0.4 us for an async function, 2 us for another.
        if type(func) is FunctionType and func.__code__.co_flags & CO_COROUTINE:
            self.is_async = True
        elif type(func) is FunctionType and not func.__dict__:  # nobody has marked it
            self.is_async = False
        elif callable(func):
            self.is_async = is_async_callable(func)
        else:
            raise _not_callable(func)
        self.context = otel_context.get_current()
        self.queued_at = perf_counter()
        self.tracing = tracing
        self._pending = finalizers.generation

    async def __call__(self) -> None:
        if not self.is_async:
            # In a scope that is cancelled already, anyio would not call the function: then the task has not started.
            self._pending = finalizers.generation
            await checkpoint_if_cancelled()
        self._pending = 0
        run = telemetry.start(self)
        try:
            if type(BackgroundTask.__call__) is not FunctionType:
                # What New Relic puts around a task, a transaction, belongs there. opentelemetry-instrumentation-fastapi
                # has put a function in its place, which makes a second span.
                await super().__call__()
            elif self.is_async:
                await self.func(*self.args, **self.kwargs)
            else:
                await run_in_threadpool(self.func, *self.args, **self.kwargs)
        except GeneratorExit as thrown:
            telemetry.abandon(run, thrown)
            raise
        except BaseException as error:
            telemetry.end(run, error)
            raise
        telemetry.end(run)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pending": 0}  # a copy is not what was added

    def skip(self, reason: str) -> None:
        """Report that the task will not run, unless it has run."""
        if self._pending:
            self._lose("skipped", reason)

    def __del__(self) -> None:
        if self._pending:
            self._lose("dropped", _DROPPED)

    def _lose(self, error: Literal["skipped", "dropped"], reason: str) -> None:
        # A process that was forked off has a copy of each task, which is not its own to run or to lose.
        if self._pending == finalizers.generation:
            finalizers(telemetry.report_lost, self, error, reason)
        self._pending = 0


class TracedBackgroundTasks(BackgroundTasks):
    """The background tasks of a response, each inside a span of its own.

    A handler gets the queue of its request by the annotation
    [`traced_tasks.TracedBackgroundTasks`][traced_tasks.TracedBackgroundTasks]. Made by hand, it goes where Starlette's
    goes: `Response(background=...)`.

    Args:
        tasks: Tasks to begin with. A plain one is traced as well, in the context that is current now. A traced one
            keeps its own options.
        tracing: How the spans look. Default: `TaskTracing()`.

    Raises:
        TypeError: `tracing` is not a `TaskTracing`.
    """

    tracing: TaskOptions

    def __init__(self, tasks: Sequence[BackgroundTask] | None = None, *, tracing: TaskOptions | None = None) -> None:
        self.tracing = _DEFAULT if tracing is None else tracing
        if not isinstance(self.tracing, TaskOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"tracing is a TaskTracing, not {tracing!r}")
        super().__init__([_traced(task, self.tracing) for task in tasks or ()])

    @classmethod
    def adopt(cls, queue: BackgroundTasks, tracing: TaskOptions) -> Self:
        """Make the queue that FastAPI made for a request a traced one, with what it holds already.

        Args:
            queue: FastAPI's queue.
            tracing: How the spans look.

        Returns:
            The same object. If it is traced already, in another way: a view on it.
        """
        if isinstance(queue, TracedBackgroundTasks):
            return queue if isinstance(queue, cls) and queue.tracing == tracing else cls._view(queue, tracing)
        # FastAPI runs the object it made and none that a dependency returns, and its class's __call__ puts a span of
        # its own around each task. So the object itself has to become ours: one object, of one request.
        queue.__class__ = cls
        assert isinstance(queue, cls)
        queue.tracing = tracing
        queue.tasks = [_traced(task, tracing) for task in queue.tasks]
        return queue

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a function to call after the response is sent, in the context that is current now.

        Args:
            func: The function to call, `def` (called in a worker thread) or `async def`.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError: `func` is not callable.
        """
        # Not super().add_task(): ddtrace patches it to add a span. And not by calling the class, which would take the
        # arguments apart once more: 0.2 us of 0.6 us.
        task = object.__new__(TracedBackgroundTask)
        task._capture(func, args, kwargs, self.tracing)  # pyright: ignore[reportPrivateUsage]
        self.tasks.append(task)

    def with_options(self, **changes: Unpack[TaskOptionsDict]) -> Self:
        """Return a view on the same queue whose tasks are traced with other options.

        Args:
            **changes: Options of `TaskTracing`. `attributes` are merged with the queue's, `links` appended to them,
                everything else replaces.

        Raises:
            pydantic.ValidationError: An option is unknown or its value is of the wrong type.
        """
        return self._view(self, self.tracing.merge(changes))

    @classmethod
    def _view(cls, queue: "TracedBackgroundTasks", tracing: TaskOptions) -> Self:
        view: Self = object.__new__(_view_class(cls))
        view.__dict__ = queue.__dict__  # one state: when somebody assigns `tasks`, all see it
        view.tracing = tracing
        return view

    async def __call__(self) -> None:
        failures: list[Exception] = []
        try:
            remaining = iter(self.tasks)
            for task in remaining:
                if type(task) is not TracedBackgroundTask:
                    task = _traced(task, self.tracing)
                call: Any = type(task).__call__
                try:
                    await call(task)  # task() takes 0.1 us of 1.7 us longer
                except Exception as error:
                    failures.append(error)
                    if task.tracing.on_error == "stop":
                        self._skip(remaining, f"{_name(task)}, before it in the queue, failed with {error_type(error)}")
                        if len(failures) == 1:
                            raise
                        break
                except BaseException as error:
                    reason = f"its queue was cut short by {error_type(error)} at {_name(task)}"
                    if isinstance(task, TracedBackgroundTask):  # a queue has reported its own
                        task.skip(reason)  # it may not have started
                    self._skip(remaining, reason)
                    if failures:
                        telemetry.log_failures(failures, error)
                    raise
            if failures:
                raise ExceptionGroup("background tasks failed", failures)
        finally:
            del failures  # or the traceback of each would hold it, and this frame, in a cycle

    def _skip(self, tasks: Iterable[BackgroundTask], reason: str) -> None:
        for task in tuple(tasks):  # what a task_hook adds now is not lost yet
            if task is not self:
                _traced(task, self.tracing).skip(reason)

    def skip(self, reason: str) -> None:
        """Report that those of the tasks that have not run will not run."""
        self._skip(self.tasks, reason)


def _name(task: TracedBackgroundTask | TracedBackgroundTasks) -> str:
    return function_names(task.func if isinstance(task, TracedBackgroundTask) else task)[1]


def _view_class(cls: Any) -> Any:
    """Return the class of views on queues of a class, which keep their `tracing` outside the state they share."""
    if "_View" not in vars(cls):
        cls._View = type(cls.__name__, (cls,), {"__slots__": ("tracing",)})
        cls._View._View = cls._View
    return cls._View


def _traced(task: BackgroundTask, tracing: TaskOptions) -> TracedBackgroundTask | TracedBackgroundTasks:
    if isinstance(task, (TracedBackgroundTask, TracedBackgroundTasks)):
        return task
    if isinstance(task, StarletteBackgroundTasks) and type(task) in (BackgroundTasks, StarletteBackgroundTasks):
        queue = TracedBackgroundTasks(tracing=tracing)
        queue.tasks = task.tasks  # the list itself, which may still grow
        return queue
    # Not by the class's own __init__, which would refuse here what somebody else has queued; and not the task itself,
    # which may be one for many requests.
    traced = object.__new__(TracedBackgroundTask)
    if next((cls for cls in type(task).__mro__ if "__call__" in vars(cls)), None) is BackgroundTask:
        vars(traced).update(vars(task))
    else:  # it runs in a way of its own
        vars(traced).update(func=task, args=(), kwargs={}, is_async=True)
    vars(traced).update(
        context=otel_context.get_current(),
        queued_at=perf_counter(),
        tracing=tracing,
        _pending=finalizers.generation,
    )
    return traced


def _not_callable(given: Any) -> TypeError:
    if not iscoroutine(given):
        return TypeError(f"a background task is a function, with its arguments behind it, not {given!r}")
    given.close()  # or Python warns as well that it was never awaited
    name = given.__qualname__.rpartition("<locals>.")[2]
    return TypeError(
        f"a background task is a function, with its arguments behind it, not a coroutine: give {name}, ... instead of "
        f"{name}(...)"
    )
