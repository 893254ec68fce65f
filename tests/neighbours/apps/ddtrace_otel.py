"""ddtrace as OpenTelemetry's tracer provider: its spans and OpenTelemetry's are of one kind."""

import os

os.environ["DD_TRACE_OTEL_ENABLED"] = "true"

from tests.neighbours.apps import ddtrace_spans  # first, as ddtrace-run would  # isort: skip
import asyncio

from starlette.background import BackgroundTasks

from tests.neighbours.apps import shop
from tests.neighbours.report import Span

shop.watched["ddtrace"] = ddtrace_spans.current

asyncio.run(shop.use(shop.make_app(), *shop.ORDERS, *shop.FAILURES))
shop.report(
    [
        Span(
            # It keeps no scope.
            scope="traced_tasks" if span.resource.startswith("background_task ") else "",
            name=span.resource,
            kind=span.name,
            trace=f"{span.trace_id:032x}",
            id=f"{span.span_id:016x}",
            parent=f"{span.parent_id:016x}" if span.parent_id else None,
            error=span.get_tag("error.type"),
        )
        for span in ddtrace_spans.kept
    ],
    patched=hasattr(BackgroundTasks.add_task, "__wrapped__"),
)
