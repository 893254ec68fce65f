"""What an engine's worker does with a message: a run whose context came in headers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, update_wrapper, wraps
from inspect import isawaitable, iscoroutinefunction
from time import perf_counter, time
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind

from traced_tasks._background import TracedBackgroundTask
from traced_tasks._engines import Engine
from traced_tasks._lost import reporter
from traced_tasks._message import read
from traced_tasks._options import TaskOptions
from traced_tasks._run import Run, end, raise_again, start
from traced_tasks._telemetry import call_hook, instruments_for, log_failure

_AT_STOP = 5.0  # s


def options(tracing: TaskOptions | None) -> TaskOptions:
    """Return the options of a worker.

    Raises:
        TypeError: They are none.
    """
    if tracing is not None and not isinstance(tracing, TaskOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"tracing is a TaskTracing, not {tracing!r}")
    return tracing or TaskOptions()


class Received:
    """A message that a worker has received, and what becomes of its task."""

    def __init__(
        self,
        engine: Engine,
        task: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        message_id: str,
        queue: str | None,
        tracing: TaskOptions,
    ) -> None:
        message = read(headers, tracing)
        attributes = {**engine.attributes("process", message_id, queue), **message.options.attributes}
        kind = message.options.span_kind or SpanKind.CONSUMER
        self.received_at = perf_counter()
        self.called = False
        self.failure: BaseException | None = None
        self.task = traced = object.__new__(TracedBackgroundTask)
        vars(traced).update(func=task, args=args, kwargs=kwargs, is_async=False)
        traced.tracing = message.options.model_copy(update={"attributes": attributes, "span_kind": kind})
        traced.context, traced.queued_at = message.context, None
        if message.queued_at is not None:
            traced.queued_at = self.received_at - max(0.0, time() - message.queued_at)
        traced.gives_way = engine.is_instrumented(task)
        traced.instruments = instruments_for(task, tracing.meter_provider)

    def start(self) -> Run:
        """Start the run."""
        self.called = True
        run = start(self.task)
        if self.task.tracing.task_hook is not None:
            call_hook(self.task, run[2])
        return run

    def report(self, failure: BaseException | None, ago: float) -> None:
        """Report a run that began so many seconds ago where it cannot be seen, and has ended now."""
        self.called = True
        run = start(self.task, ago)
        if self.task.tracing.task_hook is not None:
            call_hook(self.task, run[2])
        end(run, None, [] if failure is None else [failure])


def receive(engine: Engine, task: Any, *args: Any) -> Received | None:
    """Take what came with a message."""
    try:
        return Received(engine, task, *args)
    except Exception as failure:
        instruments = instruments_for(task, None)
        log_failure("The background task %s runs without a span, for its message cannot be read.", instruments, failure)
        return None


class Processing(NamedTuple):
    """What is being processed, and around it, where a worker in the application's process is called from one."""

    message: Received | None
    outer: "Processing | None"


processing: ContextVar[Processing | None] = ContextVar("traced_tasks", default=None)


def begin(message: Received | None) -> None:
    """Process a message: its task's function, when it is called, is called for that."""
    processing.set(Processing(message, processing.get()))


def finish() -> Received | None:
    """Return the message that was processed."""
    processed = processing.get()
    processing.set(processed and processed.outer)
    return processed and processed.message


def traced(engine: Engine, task: Any, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a task as a worker calls it: in a run of the message that is being processed, if any."""
    if not iscoroutinefunction(func):
        return _TracedFunction(engine, task, func)

    @wraps(func)
    async def call(*args: Any, **kwargs: Any) -> Any:
        message = _take(task)
        called = func(*args, **kwargs)
        return await (called if message is None else _wait(engine, message.start(), called))

    return call


def _take(task: Any) -> Received | None:
    message = processed.message if (processed := processing.get()) else None
    return message if message is not None and message.task.func is task and not message.called else None


async def _wait(engine: Engine, run: Run, called: Awaitable[Any]) -> Any:
    try:
        result = await called
    except BaseException as error:
        raised = [error]
    else:
        end(run, result)
        return result
    end(run, None, _failures(engine, raised))
    return raise_again(raised)


class _TracedFunction:
    def __init__(self, engine: Engine, task: Any, func: Callable[..., Any]) -> None:
        update_wrapper(self, func)
        self._engine, self._task, self._func = engine, task, func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        message = _take(self._task)
        if message is None:
            return self._func(*args, **kwargs)
        run = message.start()
        try:
            result = self._func(*args, **kwargs)
        except BaseException as error:
            raised = [error]
        else:
            if self._engine.awaits and isawaitable(result):
                return self._go_on(run, result)
            end(run, result)
            return result
        end(run, None, _failures(self._engine, raised))
        return raise_again(raised)

    async def _go_on(self, run: Run, called: Awaitable[Any]) -> Any:
        # In the event loop, in a context that the thread has no part in.
        task, started_at, span, context, token, _, measured = run
        token = None if token is None else otel_context.attach(context)
        return await _wait(self._engine, (task, started_at, span, context, token, (), measured), called)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        # A pool of processes gets the function itself, which it finds by its name.
        return partial, (self._func,)


def _failures(engine: Engine, raised: Sequence[BaseException]) -> list[BaseException]:
    failure = engine.failure(raised[0])
    return [] if failure is None else [failure]


def flush(tracing: TaskOptions) -> None:
    """Export what is left, for a worker that is about to stop does not do so for itself."""
    reporter.flush(_AT_STOP)
    providers: tuple[Any, ...] = (
        tracing.tracer_provider or trace.get_tracer_provider(),
        tracing.meter_provider or metrics.get_meter_provider(),
    )
    for provider in providers:
        with suppress(Exception):  # the API's own has nothing to export
            provider.force_flush(int(_AT_STOP * 1e3))
