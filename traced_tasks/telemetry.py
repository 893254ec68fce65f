"""A task's span: everything that talks to OpenTelemetry."""

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from types import FunctionType, MethodType, TracebackType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, SpanKind, StatusCode, Tracer, TracerProvider

from traced_tasks.options import TaskOptions
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

    __slots__ = ("_context", "_func", "_options", "_queued_at", "_span", "_token")

    def __init__(self, func: Callable[..., Any], context: Context, queued_at: float, options: TaskOptions) -> None:
        self._func = func
        self._context = context
        self._queued_at = queued_at
        self._options = options

    def __enter__(self) -> None:
        context = _with_fastapi_data(self._context)
        try:
            self._span = self._start(context)
            context = trace.set_span_in_context(self._span, context)
        except Exception:
            logger.exception(
                "The span of the task %s could not be started; it runs without one.", _names(self._func)[1]
            )
            self._span = INVALID_SPAN
        self._token = otel_context.attach(context)

    def _start(self, context: Context) -> trace.Span:
        options = self._options
        qualname, function_name = _names(self._func)
        links = options.links
        if options.propagation_style != "child":
            parent = trace.get_current_span(context).get_span_context()
            if options.propagation_style == "link" and parent.is_valid:
                links = (Link(parent), *links)
            context = trace.set_span_in_context(INVALID_SPAN, context)
        return _tracer(options.tracer_provider or trace.get_tracer_provider()).start_span(
            options.span_name or f"background_task {qualname.rpartition('<locals>.')[2]}",
            context,
            options.span_kind or (SpanKind.INTERNAL if options.propagation_style == "child" else SpanKind.CONSUMER),
            {
                "code.function.name": function_name,
                "background_task.queue.duration": perf_counter() - self._queued_at,
                **options.attributes,
            },
            links,
        )

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        otel_context.detach(self._token)
        try:
            try:
                if exc is not None and self._span.is_recording():
                    self._record(exc)
            finally:
                self._span.end()
        except Exception:
            logger.exception("The span of the task %s could not be completed.", _names(self._func)[1])

    def _record(self, exc: BaseException) -> None:
        self._span.set_attribute("error.type", _error_type(exc))
        if self._options.record_exception:
            self._span.set_status(StatusCode.ERROR, ": ".join(filter(None, (type(exc).__name__, str(exc)))))
            self._span.record_exception(exc)
        else:
            self._span.set_status(StatusCode.ERROR)


@functools.lru_cache(maxsize=16)
def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("traced_tasks", __version__)


def _with_fastapi_data(context: Context) -> Context:
    # `attach(propagate.extract(...))` in a handler starts from an empty context. FastAPI resets that before it runs the
    # queue, so `fastapi.telemetry.get_telemetry_data()` answers in a plain task; the captured context hides it.
    if _fastapi_key in context:
        return context
    data = otel_context.get_value(_fastapi_key)
    return context if data is None else otel_context.set_value(_fastapi_key, data, context)


def _names(func: Any) -> tuple[str, str]:
    """Return the qualified name of a task's function, and its `code.function.name` (`module.qualname`)."""
    # Real types and real attributes only: a Mock is an instance of whatever it imitates and has every attribute.
    while type(func) is not FunctionType:
        if type(func) is MethodType:
            func = func.__func__
        elif issubclass(type(func), functools.partial):
            func = func.func
        else:
            return _object_names(func)
    return func.__qualname__, _with_module(func.__module__, func.__qualname__)


def _object_names(func: object) -> tuple[str, str]:
    try:
        # A class has these, and what functools.wraps, C code and wrapt make.
        qualname = object.__getattribute__(func, "__qualname__")
        module = object.__getattribute__(func, "__module__")
    except AttributeError:
        qualname = module = None
    if type(qualname) is not str:
        qualname, module = type(func).__qualname__, type(func).__module__
    return qualname, _with_module(module, qualname)


def _with_module(module: str | None, qualname: str) -> str:
    return f"{module}.{qualname}" if module else qualname


def _error_type(exc: BaseException) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else _with_module(cls.__module__, cls.__qualname__)
