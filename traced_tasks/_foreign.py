"""Every name of FastAPI, Starlette, OpenTelemetry and New Relic that is not their public API."""
# Rule: any of them may be gone with the next release. Each says what is missing "Without" it; all else works on.

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.background import BackgroundTask

# What `Depends(...)` makes, inside of FastAPI. Without: `TaskTracing(...)` needs a `Depends(...)` around it.
try:
    from fastapi.params import Depends as Depends
except ImportError:
    Depends = object  # type: ignore[assignment,misc]

# OpenTelemetry's API for logs, which is not stable yet. Without: no log record of the exception of a failing task.
otel_logs: Any = None
with suppress(ImportError):
    from opentelemetry import _logs as otel_logs  # noqa: F401  # pyright: ignore[reportUnusedImport]

# The context variables in which the event loop's libraries keep what is theirs.
loop_variables: tuple[ContextVar[Any], ...] = ()
with suppress(ImportError, AttributeError):
    import sniffio

    loop_variables = (sniffio.current_async_library_cvar,)

# Where FastAPI, since 0.142, keeps what it knows of a request. Without: `fastapi.telemetry.get_telemetry_data()` has no
# answer in a task whose handler attached a context of its own.
request_key = ""
with suppress(ImportError):
    from fastapi.telemetry._api import _REQUEST_TELEMETRY_KEY as request_key  # noqa: N811  # pyright: ignore[reportPrivateUsage]


def with_request_data(context: Context) -> Context:
    """Return a captured context with what FastAPI knows of the request that runs the task, as a plain task has it."""
    data = otel_context.get_value(request_key)
    return context if data is None else otel_context.set_value(request_key, data, context)


_otel_metrics: Any = None
with suppress(ImportError):
    from opentelemetry.metrics import _internal as _otel_metrics

# As long as no provider is set, these look into the environment each time, for a fifth of a task. They are asked once.
_unasked: list[Callable[[], object]] = [trace.get_tracer_provider, metrics.get_meter_provider]


def _ask() -> None:
    with suppress(IndexError):  # another thread asks as well
        _unasked.pop()()
        _unasked.pop()()


def global_meter_provider() -> MeterProvider | None:
    """Return the global meter provider, or `None` as long as none is set. Without: what the API returns then."""
    if _unasked:
        _ask()
    try:
        provider: MeterProvider | None = _otel_metrics._METER_PROVIDER
    except AttributeError:
        return metrics.get_meter_provider()
    return provider


def global_tracer_provider() -> TracerProvider | None:
    """Return the global tracer provider, or `None` as long as none is set. Without: what the API returns then."""
    if _unasked:
        _ask()
    try:
        return trace._TRACER_PROVIDER  # pyright: ignore[reportPrivateUsage]
    except AttributeError:
        return trace.get_tracer_provider()


def in_transaction(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's function in New Relic's transaction, which is no span, as other patches are. Without: none."""
    if not type(BackgroundTask.__call__).__module__.startswith("newrelic."):
        return func
    with suppress(Exception):
        agent: Any = import_module("newrelic.agent")
        inside = agent.current_transaction(active_only=False)
        func = (agent.FunctionTraceWrapper if inside else agent.BackgroundTaskWrapper)(func)
    return func
