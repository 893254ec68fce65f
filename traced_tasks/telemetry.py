"""What a task tells OpenTelemetry: how it ran, or that it never did."""

import logging
import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Token
from time import perf_counter, time_ns
from typing import TYPE_CHECKING

from opentelemetry import _logs as logs
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import AttributeValue

from traced_tasks.finalizers import finalizers
from traced_tasks.metrics import FunctionInstruments, instruments_of
from traced_tasks.names import error_type, function_names
from traced_tasks.options import TaskOptions
from traced_tasks.providers import PerProvider, global_tracer_provider
from traced_tasks.version import __version__

if TYPE_CHECKING:
    from traced_tasks.background import TracedBackgroundTask

_fastapi_key = ""  # before FastAPI 0.142: in no context
with suppress(ImportError):
    from fastapi.telemetry._api import _REQUEST_TELEMETRY_KEY as _fastapi_key  # noqa: N811  # pyright: ignore[reportPrivateUsage]

logger = logging.getLogger("traced_tasks")


# To make an object of a class of one's own takes 0.1 us longer, of 1.8 us without an SDK.
Run = tuple["TracedBackgroundTask", float, Context, Token[Context] | None, Span | None, FunctionInstruments | None]
"""The task, when it started, its context, the token to detach that (`None`: it is), its span, and what measures it."""


def start(task: "TracedBackgroundTask") -> Run:
    """Begin a run of a task: in the context that it captured, inside a span of its own, measured.

    An error of the telemetry itself is logged and goes no further.
    """
    options = task.tracing
    context = task.context
    span: Span | None = None
    measured: FunctionInstruments | None = None
    name, function_name = function_names(task.func)
    started_at = perf_counter()
    try:
        if _fastapi_key not in context:
            context = _with_fastapi_data(context)
        tracer = _tracer_of(options.tracer_provider)
        if tracer is not None:
            attributes: dict[str, AttributeValue] = {
                "code.function.name": function_name,
                "background_task.queue.duration": started_at - task.queued_at,
            }
            span = _start_span(tracer, options, name, context, attributes)
            context = trace.set_span_in_context(span, context)
        elif options.propagation_style != "child":
            context = trace.set_span_in_context(INVALID_SPAN, context)
    except Exception as error:
        _log("The background task %s runs without a span, which could not be started.", task, error)
    token = otel_context.attach(context)
    try:
        instruments = instruments_of(options.meter_provider)
        if instruments is not None:
            measured = instruments.of(function_name)
            measured.start(started_at - task.queued_at)
    except Exception as error:
        _log("The start of the background task %s could not be measured.", task, error)
    run = task, started_at, context, token, span, measured
    if options.task_hook is not None:
        try:
            _call_hook(task, INVALID_SPAN if span is None else span)
        except BaseException as error:  # which is not ours to stop, so the task will not run
            end(run, error)
            raise
    return run


def end(run: Run, exc: BaseException | None = None) -> None:
    """End a run of a task, by its exception if there is one."""
    task, started_at, _, token, span, measured = run
    try:
        if measured is not None:
            measured.end(perf_counter() - started_at, None if exc is None else error_type(exc))
    except Exception as error:
        _log("The end of the background task %s could not be measured.", task, error)
    try:
        if exc is not None:
            _record(exc, task, INVALID_SPAN if span is None else span)
    except Exception as error:
        _log("The failure of the background task %s could not be recorded.", task, error)
    try:
        if span is not None:
            span.end()
    except Exception as error:
        _log("The span of the background task %s could not be ended.", task, error)
    # Behind all that: an exception's log record and a measurement's exemplar refer to the span that is current.
    if token is not None:
        otel_context.detach(token)


def abandon(run: Run, exc: GeneratorExit) -> None:
    """End a run whose coroutine was thrown away. Unlike any other end, this one may come in another context."""
    task, started_at, context, token, span, measured = run
    if token is not None and otel_context.get_current() is context:
        otel_context.detach(token)
    finalizers(end, (task, started_at, context, None, span, measured), exc)


def _record(exc: BaseException, task: "TracedBackgroundTask", span: Span) -> None:
    span.set_attribute("error.type", error_type(exc))
    span.set_status(StatusCode.ERROR)
    if not task.tracing.record_exception:
        return
    # https://opentelemetry.io/docs/specs/semconv/exceptions/
    signals = {signal.strip() for signal in os.environ.get("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "").split(",")}
    if span.is_recording():
        span.set_status(StatusCode.ERROR, _description(exc))
        if "logs/dup" in signals or "logs" not in signals:
            _add_event(exc, span)
    if signals & {"logs", "logs/dup"}:
        logs.get_logger("traced_tasks", __version__).emit(
            event_name="background_task.exception",
            timestamp=time_ns(),
            severity_number=SeverityNumber.ERROR,
            severity_text="ERROR",
            body="Exception in a background task",
            attributes={"code.function.name": function_names(task.func)[1]},
            exception=exc,
        )


def _description(exc: BaseException) -> str:
    message = ""
    with suppress(Exception):  # its own fault, and nothing else of it is lost by that
        message = str(exc)
    return f"{type(exc).__name__}: {message}" if message else type(exc).__name__


def _add_event(exc: BaseException, span: Span) -> None:
    try:
        span.record_exception(exc)
    except Exception:
        stacktrace = "".join(traceback.format_exception(exc))
        span.add_event("exception", {"exception.type": error_type(exc), "exception.stacktrace": stacktrace})


def report_lost(task: "TracedBackgroundTask", error: str, reason: str) -> None:
    """Report a task that never ran: by a warning, a span from `add_task` until now, and one on the counter.

    Args:
        task: The task.
        error: The `error.type`: `skipped` by its queue, or `dropped` with it.
        reason: Why, in words for the developer of the application.
    """
    options = task.tracing
    name, function_name = function_names(task.func)
    with suppress(Exception):  # of a log handler: there is no one left to tell
        logger.warning("The background task %s was %s: %s.", function_name, error, reason)
    try:
        tracer = _tracer_of(options.tracer_provider)
        span: Span = INVALID_SPAN
        if tracer is not None:
            attributes: dict[str, AttributeValue] = {"code.function.name": function_name, "error.type": error}
            queued_at = time_ns() - int((perf_counter() - task.queued_at) * 1e9)
            span = _start_span(tracer, options, name, task.context, attributes, queued_at)
        span.set_attribute("error.type", error)  # also if the options have one
        if options.task_hook is not None:
            try:
                _call_hook(task, span)
            except BaseException as failure:  # there is nothing running that it could end
                _log("The task_hook of the background task %s failed.", task, failure)
        span.set_status(StatusCode.ERROR, reason)
        span.end()
    except Exception as failure:
        _log("The loss of the background task %s could not be traced.", task, failure)
    try:
        instruments = instruments_of(options.meter_provider)
        if instruments is not None:
            instruments.lose(function_name, error)
    except Exception as failure:
        _log("The loss of the background task %s could not be measured.", task, failure)


def log_failures(failures: Sequence[Exception], error: BaseException) -> None:
    """Log the failures that a queue went on after, and that nobody will raise, because something else ended it."""
    with suppress(Exception):
        logger.error(
            "The queue was cut short by %s, after background tasks had failed with %s.",
            error_type(error),
            ", ".join(map(error_type, failures)),
        )


def _start_span(
    tracer: Tracer,
    options: TaskOptions,
    name: str,
    context: Context,
    attributes: dict[str, AttributeValue],
    start_time: int | None = None,
) -> Span:
    if options.attributes:
        attributes.update(options.attributes)
    links = options.links
    kind = SpanKind.INTERNAL
    if options.propagation_style != "child":
        kind = SpanKind.CONSUMER
        origin = trace.get_current_span(context).get_span_context()
        if options.propagation_style == "link" and origin.is_valid:
            links = (Link(origin), *links)
        context = trace.set_span_in_context(INVALID_SPAN, context)
    if options.span_kind is not None:
        kind = options.span_kind
    return tracer.start_span(
        name if options.span_name is None else options.span_name, context, kind, attributes, links, start_time
    )


def _make_tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("traced_tasks", __version__)


_tracer_of = PerProvider(_make_tracer, global_tracer_provider).get


def _with_fastapi_data(context: Context) -> Context:
    # `attach(propagate.extract(...))` in a handler starts from an empty context. FastAPI resets that before it runs the
    # queue, so `fastapi.telemetry.get_telemetry_data()` answers in a plain task; the captured context hides it.
    data = otel_context.get_value(_fastapi_key)
    return context if data is None else otel_context.set_value(_fastapi_key, data, context)


def _call_hook(task: "TracedBackgroundTask", span: Span) -> None:
    try:
        task.tracing.task_hook(span, task)  # type: ignore[misc]  # pyright: ignore[reportOptionalCall]
    except Exception as error:
        _log("The task_hook of the background task %s failed.", task, error)


def _log(message: str, task: "TracedBackgroundTask", error: BaseException) -> None:
    # Raised while the exception of a task is on its way, the error carries that along, which may be a secret.
    error.__cause__ = error.__context__ = None
    with suppress(Exception):
        logger.error(message, function_names(task.func)[1], exc_info=error)
