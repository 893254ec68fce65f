"""What an engine's worker does with a message: a run whose context came in headers."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import update_wrapper
from threading import Thread
from time import perf_counter, time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind

from traced_tasks._background import TracedBackgroundTask
from traced_tasks._engines import Engine
from traced_tasks._foreign import otel_logs
from traced_tasks._lost import reporter
from traced_tasks._message import read
from traced_tasks._options import TaskOptions
from traced_tasks._run import Run, end, raise_again, start, start_measured
from traced_tasks._telemetry import call_hook, instruments_for, log_failure

_AT_STOP = 5.0  # s


class Received:
    """A message that is being processed, and what becomes of its task."""

    task: TracedBackgroundTask | None = None  # if the message can be read
    called = False
    failed: Sequence[BaseException] = ()
    owner: object = None
    gives_way = False  # to the span of the engine's own instrumentation

    def __init__(
        self,
        engine: Engine,
        broker: Any,
        message: object,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any],
        message_id: str,
        queue: str | None,
        tracing: TaskOptions,
    ) -> None:
        self.message, self.message_id, self.func = message, message_id, func
        self.outer = processing.get()  # a worker in the application's process may be called from a task
        self.received_at = perf_counter()
        instruments = instruments_for(func, tracing.meter_provider)
        try:
            context, queued_at, options = read(headers, tracing)
            attributes = {**engine.attributes("process", message_id, queue), **options.attributes}
            kind = options.span_kind or SpanKind.CONSUMER
            task = object.__new__(TracedBackgroundTask)
            vars(task).update(func=func, args=args, kwargs=kwargs, is_async=False, instruments=instruments)
            task.tracing = options.model_copy(update={"attributes": attributes, "span_kind": kind})
            task.context = context
            task.queued_at = None if queued_at is None else self.received_at - max(0.0, time() - queued_at)
            self.gives_way = engine.is_instrumented(broker)
            self.task = task
        except Exception as failure:
            log_failure("The message of the background task %s cannot be read.", instruments, failure)

    def start(self, ago: float = 0) -> Run | None:
        """Start the run, as if its function had been called `ago` seconds ago."""
        self.called = True
        if self.task is None:
            return None
        run = start_measured(self.task, ago) if self.gives_way else start(self.task, ago)
        try:
            if self.task.tracing.task_hook is not None:
                call_hook(self.task, run[2])
        except BaseException as error:  # a time limit of the engine's, perhaps
            raised = [error]
        else:
            return run
        end(run, None, raised)
        return raise_again(raised)


processing: ContextVar[Received | None] = ContextVar("traced_tasks", default=None)


def start_message(task: Any) -> Run | None:
    """Start the run of the message that is being processed, if it is one for this task and was not started."""
    message = processing.get()
    return message.start() if message is not None and message.func is task and not message.called else None


class TracedFunction:
    """A `def` function as a worker calls it: in a run of its message."""

    def __init__(self, engine: Engine, task: Any, func: Callable[..., Any]) -> None:
        update_wrapper(self, func)
        self.engine, self.task, self.func = engine, task, func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = start_message(self.task)
        if run is None:
            return self.func(*args, **kwargs)
        try:
            result = self.func(*args, **kwargs)
        except BaseException as error:
            raised = [error]
        else:
            return self.end(run, result)
        end(run, None, self.engine.failed(raised[0]))
        return raise_again(raised)

    def end(self, run: Run, result: Any) -> Any:
        end(run, result)
        return result


def flush(tracing: TaskOptions) -> None:
    """Export what is left: a worker that is about to stop does not do so by itself."""
    reporter.flush(_AT_STOP)
    providers: tuple[Any, ...] = (
        tracing.tracer_provider or trace.get_tracer_provider(),
        tracing.meter_provider or metrics.get_meter_provider(),
        otel_logs and otel_logs.get_logger_provider(),
    )
    for provider in providers:
        if force_flush := getattr(provider, "force_flush", None):
            # On a thread, for the SDK's lock may be one that was held while this process was forked off.
            flushing = Thread(target=force_flush, args=(int(_AT_STOP * 1e3),), daemon=True)
            flushing.start()
            flushing.join(_AT_STOP)
