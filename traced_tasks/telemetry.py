"""A task's span: everything that talks to OpenTelemetry."""

import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from types import TracebackType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode, Tracer, TracerProvider

from traced_tasks.names import error_type, function_names
from traced_tasks.options import TaskOptions
from traced_tasks.providers import PerProvider
from traced_tasks.version import __version__

_fastapi_key = ""  # before FastAPI 0.142: in no context
with suppress(ImportError):
    from fastapi.telemetry._api import _REQUEST_TELEMETRY_KEY as _fastapi_key  # noqa: N811  # pyright: ignore[reportPrivateUsage]

logger = logging.getLogger("traced_tasks")


class TaskSpan:
    """Run a block in the context that its task captured, inside a span of its own.

    The block's exception is recorded and goes on. An error of the telemetry itself is logged and goes no further.

    Args:
        func: The task's function, for the names.
        context: The context that was current at `add_task`.
        queued_at: When that was, in seconds of `time.perf_counter`.
        options: How the span looks.
    """

    __slots__ = ("_context", "_function_name", "_options", "_qualname", "_queued_at", "_span", "_token")

    def __init__(self, func: Callable[..., Any], context: Context, queued_at: float, options: TaskOptions) -> None:
        self._qualname, self._function_name = function_names(func)
        self._context = context
        self._queued_at = queued_at
        self._options = options

    def __enter__(self) -> None:
        self._span: Span = INVALID_SPAN
        try:
            self._context = _with_fastapi_data(self._context)
            self._span = self._start()
            self._context = trace.set_span_in_context(self._span, self._context)
        except Exception as error:
            self._log("The task %s runs without a span, which could not be started.", error, None)
        self._token = otel_context.attach(self._context)

    def _start(self) -> Span:
        options = self._options
        context = self._context
        links = options.links
        if options.propagation_style != "child":
            parent = trace.get_current_span(context).get_span_context()
            if options.propagation_style == "link" and parent.is_valid:
                links = (Link(parent), *links)
            context = trace.set_span_in_context(INVALID_SPAN, context)
        provider = trace.get_tracer_provider() if options.tracer_provider is None else options.tracer_provider
        return _tracer(provider).start_span(
            options.span_name or f"background_task {self._qualname.rpartition('<locals>.')[2]}",
            context,
            options.span_kind or (SpanKind.INTERNAL if options.propagation_style == "child" else SpanKind.CONSUMER),
            {
                "code.function.name": self._function_name,
                "background_task.queue.duration": perf_counter() - self._queued_at,
                **options.attributes,
            },
            links,
        )

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A coroutine that is thrown away is closed in whatever context the garbage collector was called in.
        if not isinstance(exc, GeneratorExit) or otel_context.get_current() is self._context:
            otel_context.detach(self._token)
        try:
            if exc is not None and self._span.is_recording():
                self._record(exc)
        except Exception as error:
            self._log("The failure of the task %s could not be recorded.", error, exc)
        try:
            self._span.end()
        except Exception as error:
            self._log("The span of the task %s could not be ended.", error, exc)

    def _record(self, exc: BaseException) -> None:
        self._span.set_attribute("error.type", error_type(exc))
        self._span.set_status(StatusCode.ERROR)
        if self._options.record_exception:
            self._span.set_status(StatusCode.ERROR, ": ".join(filter(None, (type(exc).__name__, str(exc)))))
            self._span.record_exception(exc)

    def _log(self, message: str, error: BaseException, task_error: BaseException | None) -> None:
        # Raised while the task's exception is on its way, the error carries that along, which may be a secret.
        link = error
        while link.__context__ is not None and link.__context__ is not task_error:
            link = link.__context__
        link.__context__ = None
        logger.error(message, self._function_name, exc_info=error)


def _make_tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("traced_tasks", __version__)


_tracer = PerProvider(_make_tracer)


def _with_fastapi_data(context: Context) -> Context:
    # `attach(propagate.extract(...))` in a handler starts from an empty context. FastAPI resets that before it runs the
    # queue, so `fastapi.telemetry.get_telemetry_data()` answers in a plain task; the captured context hides it.
    if _fastapi_key in context:
        return context
    data = otel_context.get_value(_fastapi_key)
    return context if data is None else otel_context.set_value(_fastapi_key, data, context)
