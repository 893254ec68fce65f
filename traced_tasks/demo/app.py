"""What the apps of the stories have in common."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.types import Lifespan

from traced_tasks import TaskTracing


def create_app(
    provider: TracerProvider,
    *used: TaskTracing,
    lifespan: Lifespan[FastAPI] | None = None,
    meter_provider: MeterProvider | None = None,
) -> FastAPI:
    """Return an app without routes, whose spans all go to `provider`.

    Args:
        provider: The provider of the requests' and the tasks' spans.
        *used: How its routes trace their tasks, where that is not the default.
        lifespan: What the app needs while it runs.
        meter_provider: The provider of the requests' and the tasks' metrics. `None`: the requests are not measured.
    """
    app = FastAPI(
        lifespan=lifespan,
        telemetry={
            "tracer_provider": provider,
            "meter_provider": meter_provider,
            # Only the span of the request, which is what a story is about (and what contrib's instrumentation shows).
            "operation_spans": False,
            "metrics": meter_provider is not None,
            "logs": False,
            "auto_configure": False,
        },
    )
    # An app of yours sets the global provider and needs none of this. The stories leave everything global alone.
    for tracing in TaskTracing(), *used:
        app.dependency_overrides[tracing] = tracing.model_copy(
            update={"tracer_provider": provider, "meter_provider": meter_provider}
        )
    return app


def code_of(handler: Callable[..., Any], *imports: str) -> list[str]:
    """Return the lines that a user writes: the imports, and the body of `handler`, which adds a route to an app."""
    function = textwrap.dedent("".join(inspect.getsourcelines(handler)[0][1:]))
    return [*imports, "", *function.splitlines()]
