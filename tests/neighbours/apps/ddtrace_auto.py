"""ddtrace, which patches `add_task`, beside OpenTelemetry's SDK."""

from tests.neighbours.apps import ddtrace_spans  # first, as ddtrace-run would  # isort: skip
import asyncio
from collections import Counter

from starlette.background import BackgroundTasks

from tests.neighbours.apps import shop

shop.record_spans()
shop.watched["ddtrace"] = ddtrace_spans.current

asyncio.run(shop.use(shop.make_app(), *shop.ORDERS, *shop.FAILURES))
shop.report(
    patched=hasattr(BackgroundTasks.add_task, "__wrapped__"),
    requests=[[span.resource, span.name, span.error] for span in ddtrace_spans.kept if span.name == "fastapi.request"],
    tasks=Counter(span.resource for span in ddtrace_spans.kept if span.name.endswith(".background_task")),
)
