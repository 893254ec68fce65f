"""What is recorded of a task: its span, the exception that ended it, the lines of the logger `traced_tasks`."""

import logging
import os
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import Context as Variables
from time import time_ns
from types import FunctionType
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from traced_tasks import _foreign
from traced_tasks._engines import Engine
from traced_tasks._metrics import FunctionInstruments, instruments_of, unmeasured
from traced_tasks._names import error_type, qualified_name
from traced_tasks._options import TaskOptions
from traced_tasks._providers import SCHEMA_URL, PerProvider
from traced_tasks._version import __version__

_logger = logging.getLogger("traced_tasks")


class Task(Protocol):
    """What was taken along in `add_task`, or came with a message."""

    func: Any
    args: Any
    kwargs: Any
    is_async: bool
    tracing: TaskOptions
    context: Context  # OpenTelemetry's
    captured_variables: Variables | None  # all context variables, if `context_variables` asks for them
    queued_at: float | None  # by `time.perf_counter`; `None` for a message that does not say
    instruments: FunctionInstruments
    handover: tuple[Engine, Any] | None  # the engine whose workers call it, and its own task
    running_since: float | None  # by `time.perf_counter`
    running_span: Span | None


def instruments_for(func: Callable[..., Any], provider: MeterProvider | None) -> FunctionInstruments:
    """Return what measures the tasks of a function, with a meter provider or the global one."""
    try:
        of = unmeasured.of
        if provider is not None or (provider := _foreign.global_meter_provider()) is not None:
            of = instruments_of(provider).of
        if type(func) is FunctionType:
            return of(func.__module__, func.__qualname__)
        return of(*qualified_name(func))
    except Exception as failure:
        module, qualname = qualified_name(func)
        instruments = unmeasured.of(module and str(module), str(qualname))
        log_failure("The background task %s cannot be measured.", instruments, failure)
        return instruments


def start_span(
    task: Task, options: TaskOptions, key: str, value: AttributeValue, start_time: int | None = None
) -> tuple[Span, Context]:
    """Start a span of a task, with one attribute more, and return it with the context in which it is current."""
    parent = task.context
    provider = options.tracer_provider
    if provider is None:
        provider = _foreign.global_tracer_provider()
        if provider is None and options.propagation_style == "child":
            return INVALID_SPAN, parent
    if _foreign.request_key not in parent:
        parent = _foreign.with_request_data(parent)
    kind, links = SpanKind.INTERNAL, options.links
    if options.propagation_style != "child":
        kind = SpanKind.CONSUMER
        origin = trace.get_current_span(parent).get_span_context()
        if options.propagation_style == "link" and origin.is_valid:
            links = (Link(origin), *links)
        parent = trace.set_span_in_context(INVALID_SPAN, parent)
    if provider is None:
        return INVALID_SPAN, parent
    attributes: dict[str, AttributeValue] = {"code.function.name": task.instruments.name}
    if value is not None:
        attributes[key] = value
    if options.attributes:
        attributes.update(options.attributes)
    name = options.span_name or task.instruments.span_name
    kind = options.span_kind or kind
    span = _tracer_of(provider).start_span(name, parent, kind, attributes, links, start_time)
    return span, trace.set_span_in_context(span, parent)


def _make_tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("traced_tasks", __version__, SCHEMA_URL)


_tracer_of = PerProvider(_make_tracer).get


def call_hook(task: Task, span: Span, errors: type[BaseException] = Exception) -> None:
    """Call the `task_hook`. These errors of it are logged and go no further."""
    hook: Any = task.tracing.task_hook
    with guarded("The task_hook of the background task %s failed.", task, errors):
        hook(span, task)


def record_exception(exc: BaseException, task: Task, span: Span) -> None:
    """Record what a failed task raised, see https://opentelemetry.io/docs/specs/semconv/exceptions/."""
    span.set_attribute("error.type", error_type(exc))
    span.set_status(StatusCode.ERROR)
    if not task.tracing.record_exception:
        return
    signals = {signal.strip() for signal in os.environ.get("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "").split(",")}
    if span.is_recording():
        description = type(exc).__name__
        with suppress(Exception):  # of its own `str()`, and nothing else of it is lost by that
            description += f": {exc}" if str(exc) else ""
        span.set_status(StatusCode.ERROR, description)
        if "logs/dup" in signals or "logs" not in signals:
            _add_event(exc, span)
    if signals & {"logs", "logs/dup"} and _foreign.otel_logs is not None:
        _foreign.otel_logs.get_logger("traced_tasks", __version__, schema_url=SCHEMA_URL).emit(
            event_name="background_task.exception",
            timestamp=time_ns(),
            severity_number=_foreign.otel_logs.SeverityNumber.ERROR,
            severity_text="ERROR",
            body="Exception in a background task",
            attributes={"code.function.name": task.instruments.name},
            exception=exc,
        )


def _add_event(exc: BaseException, span: Span) -> None:
    try:
        span.record_exception(exc)
    except Exception:  # of its `str()`
        stacktrace = "".join(traceback.format_exception(exc))
        span.add_event("exception", {"exception.type": error_type(exc), "exception.stacktrace": stacktrace})


def warn(task: Task, error: str, message: str, *args: object) -> None:
    """Log a warning of what became of a task, `error` being its `error.type`."""
    with suppress(Exception):  # of a log handler: there is no one left to tell
        _logger.warning(message, *args, extra={**task.instruments.attributes, "error.type": error})


def log_failure(message: str, instruments: FunctionInstruments, failure: BaseException) -> None:
    """Log an error of the telemetry itself."""
    failure.__context__ = None  # of a retry, perhaps, inside of the `except` of the first try
    with suppress(Exception):
        _logger.error(message, instruments.name, exc_info=failure, extra=instruments.attributes)


@contextmanager
def guarded(message: str, task: Task, errors: type[BaseException] = Exception) -> Generator[None]:
    """Log an error of the telemetry itself, and let it go no further."""
    try:
        yield
    except errors as failure:
        log_failure(message, task.instruments, failure)
