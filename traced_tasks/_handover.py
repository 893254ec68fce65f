"""What hands a task over to the workers of an engine: a run calls it in place of the task's function."""

from time import perf_counter, time
from types import SimpleNamespace
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from traced_tasks._engines import Engine
from traced_tasks._message import write
from traced_tasks._telemetry import Task, log_failure, start_span


class Handover:
    """Sends a task of an engine, when it is called with the arguments of that."""

    def __init__(self, task: Task, engine: Engine, engine_task: Any) -> None:
        self.system, self.message_id, self.gives_way, self.runs_here = engine.system, "", False, False
        self._traced, self._engine, self._task = task, engine, engine_task

    def start_span(self) -> tuple[Span, Context]:
        """Start the span of the hand-over, and return it with the context in which it is current."""
        broker = self._traced.tracing.broker
        self.message_id = self._engine.message_id(broker)
        self.runs_here = self._engine.runs_here(broker)
        self.gives_way = self._engine.is_instrumented(broker) and not self.runs_here
        return (INVALID_SPAN, self._traced.context) if self.gives_way else self._start_span()

    def _start_span(self, start_time: int | None = None) -> tuple[Span, Context]:
        task = self._traced
        queue = self._engine.queue(task.tracing.broker, self._task)
        changes = {
            "propagation_style": "child",  # the message carries the style, for the worker
            "span_name": f"send {task.instruments.function}",
            "span_kind": SpanKind.PRODUCER,
            "attributes": {**self._engine.attributes("send", self.message_id, queue), **task.tracing.attributes},
        }
        options: Any = SimpleNamespace(**{**vars(task.tracing), **changes})  # a copy of pydantic's takes 5 us
        return start_span(task, options, "messaging.system", self.system, start_time)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        task = self._traced
        try:
            headers = write(task.tracing, time() - (perf_counter() - (task.queued_at or 0)))
        except Exception as failure:
            headers = {}
            log_failure("The message of the background task %s carries no context.", task.instruments, failure)
        message_id = self.message_id or self._engine.message_id(task.tracing.broker)
        return self._engine.send(self._task, message_id, headers, args, kwargs)

    def left_open(self, started_at: int | None) -> Span:
        """Return what the engine's own instrumentation has not ended. If that is nothing, one of ours since then."""
        span = trace.get_current_span()
        if span is not trace.get_current_span(self._traced.context):
            return span
        return INVALID_SPAN if started_at is None else self._start_span(started_at)[0]
