"""What hands a task over to the workers of an engine: it is called where else the function of the task is."""

from contextlib import suppress
from time import time
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from traced_tasks._engines import Engine
from traced_tasks._message import write
from traced_tasks._metrics import FunctionInstruments
from traced_tasks._options import TaskOptions
from traced_tasks._telemetry import Task, log_failure, start_span


class EngineHandover:
    """Sends a task of an engine, when it is called with the arguments of that."""

    def __init__(self, engine: Engine, task: Any, tracing: TaskOptions, instruments: FunctionInstruments) -> None:
        self.system, self.message_id = engine.system, ""
        self._engine, self._task, self._tracing, self._instruments = engine, task, tracing, instruments
        self._queued_at = time()
        self.gives_way = False

    def start_span(self, task: Task) -> tuple[Span, Context]:
        """Start the span of the hand-over, and return it with the context in which it is current."""
        self.message_id = self._engine.message_id(self._tracing.broker)
        self.gives_way = self._engine.is_instrumented(self._tracing.broker)
        return (INVALID_SPAN, task.context) if self.gives_way else self._start_span(task)

    def _start_span(self, task: Task, start_time: int | None = None) -> tuple[Span, Context]:
        tracing, queue = self._tracing, None
        with suppress(Exception):  # of a router of the user's
            queue = self._engine.queue(tracing.broker, self._task)
        changes = {
            "propagation_style": "child",  # the message carries the style, for the worker
            "span_name": f"send {self._instruments.function}",
            "span_kind": SpanKind.PRODUCER,
            "attributes": {**self._engine.attributes("send", self.message_id, queue), **tracing.attributes},
        }
        options = tracing.model_copy(update=changes)
        return start_span(task, options, "messaging.system", self.system, start_time)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        headers: dict[str, str] = {}
        try:
            headers = write(self._tracing, self._queued_at)
        except Exception as failure:
            log_failure("The message of the background task %s carries no context.", self._instruments, failure)
        message_id = self.message_id or self._engine.message_id(self._tracing.broker)
        return self._engine.send(self._task, message_id, headers, args, kwargs)

    def left_open(self, task: Task, context: Context, started_at: int | None) -> Span:
        """Return what the engine's own instrumentation has not ended. If that is nothing, one of ours since then."""
        span = trace.get_current_span()
        if span is not trace.get_current_span(context):
            return span
        return INVALID_SPAN if started_at is None else self._start_span(task, started_at)[0]
