"""The floor: the span of a task as one would write it by hand, with the public API and for one function only.

Starlette's queue and task, and on top of them what OpenTelemetry itself takes. The context is captured in `add_task`,
as traced_tasks does: without that, what a sync handler attaches would be lost (see the page "How it works"), so a span
that is right cannot be had for less. The names are written down, not derived from the function.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any, ParamSpec

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from starlette.background import BackgroundTask, BackgroundTasks

P = ParamSpec("P")

SPAN_NAME = "background_task notify"
FUNCTION_NAME = "tests.benchmarks.bare.notify"
BOUNDARIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

tracer = trace.get_tracer("bare")
meter = metrics.get_meter("bare")
duration = meter.create_histogram("bare.duration", unit="s", explicit_bucket_boundaries_advisory=BOUNDARIES)
queue_duration = meter.create_histogram("bare.queue.duration", unit="s", explicit_bucket_boundaries_advisory=BOUNDARIES)


async def notify(user_id: int, **options: str) -> None:
    """Do nothing: the work of the task is not what is measured."""


def notify_sync(user_id: int) -> None:
    """Do nothing in a worker thread."""


class BareTask(BackgroundTask):
    """A task in a span."""

    def __init__(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        super().__init__(func, *args, **kwargs)
        self.context = otel_context.get_current()
        self.queued_at = perf_counter()

    async def __call__(self) -> None:
        span = tracer.start_span(
            SPAN_NAME,
            self.context,
            attributes={
                "code.function.name": FUNCTION_NAME,
                "background_task.queue.duration": perf_counter() - self.queued_at,
            },
        )
        token = otel_context.attach(trace.set_span_in_context(span, self.context))
        try:
            await super().__call__()
        finally:
            otel_context.detach(token)
            span.end()


class OwnTask(BareTask):
    """A task in a span with a name, attributes and links of its own."""

    def __init__(self, options: dict[str, Any], func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        super().__init__(func, *args, **kwargs)
        self.options = options

    async def __call__(self) -> None:
        span = tracer.start_span(
            self.options["span_name"],
            self.context,
            attributes={
                "code.function.name": FUNCTION_NAME,
                "background_task.queue.duration": perf_counter() - self.queued_at,
                **self.options.get("attributes", {}),
            },
            links=self.options.get("links"),
        )
        token = otel_context.attach(trace.set_span_in_context(span, self.context))
        try:
            await BackgroundTask.__call__(self)
        finally:
            otel_context.detach(token)
            span.end()


class MeasuredTask(BareTask):
    """A task in a span, with two histogram records while the span is current."""

    async def __call__(self) -> None:
        started_at = perf_counter()
        waited = started_at - self.queued_at
        span = tracer.start_span(
            SPAN_NAME,
            self.context,
            attributes={"code.function.name": FUNCTION_NAME, "background_task.queue.duration": waited},
        )
        token = otel_context.attach(trace.set_span_in_context(span, self.context))
        queue_duration.record(waited, {"code.function.name": FUNCTION_NAME})
        try:
            await BackgroundTask.__call__(self)
        finally:
            duration.record(perf_counter() - started_at, {"code.function.name": FUNCTION_NAME})
            otel_context.detach(token)
            span.end()


class BareTasks(BackgroundTasks):
    """Starlette's queue, of tasks in a span."""

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a task in a span."""
        self.tasks.append(BareTask(func, *args, **kwargs))


class MeasuredTasks(BackgroundTasks):
    """Starlette's queue, of measured tasks in a span."""

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Queue a measured task in a span."""
        self.tasks.append(MeasuredTask(func, *args, **kwargs))
