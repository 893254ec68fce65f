"""The application under load, whose spans all tell whose they are.

`python -m tests.load.app FD FILE` serves it on the listening socket FD and writes each span as a line of FILE.
"""

import asyncio
import gc
import json
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import baggage, metrics, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from starlette.background import BackgroundTask

from traced_tasks import TaskTracing, TracedBackgroundTasks


class FileExporter(SpanExporter):
    """Write spans down as they end, so that the server keeps none of them."""

    def __init__(self, path: Path) -> None:
        self.written = 0
        self._lines = path.open("w")
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            for span in spans:
                attributes = span.attributes or {}
                line = [
                    span.name,
                    span.context.trace_id,
                    span.context.span_id,
                    span.parent and span.parent.span_id,
                    [(link.context.trace_id, link.context.span_id) for link in span.links],
                    attributes.get("load.request"),
                    attributes.get("load.task"),
                    attributes.get("load.baggage"),
                ]
                self._lines.write(json.dumps(line) + "\n")
                self.written += 1
        return SpanExportResult.SUCCESS

    def flush(self) -> None:
        with self._lock:
            self._lines.flush()


app = FastAPI(telemetry={"operation_spans": False, "exclude": lambda scope: scope["method"] == "GET"})
tracer = trace.get_tracer("load")
reader = InMemoryMetricReader()
LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]


def tell(request: int, task: int | None = None) -> None:
    """Tell on the current span whose it should be, and of which request the current baggage is."""
    span = trace.get_current_span()
    span.set_attribute("load.request", request)
    span.set_attribute("load.baggage", [str(baggage.get_baggage(name)) for name in ("client", "handler")])
    if task is not None:
        span.set_attribute("load.task", task)


async def async_task(request: int, task: int) -> None:
    tell(request, task)
    with tracer.start_as_current_span("work"):
        await asyncio.sleep(0)
        tell(request, task)
    await asyncio.sleep(0)


def sync_task(request: int, task: int) -> None:
    tell(request, task)
    with tracer.start_as_current_span("work"):
        time.sleep(0)
        tell(request, task)


def add(queue: BackgroundTasks, request: int, tasks: int) -> None:
    otel_context.attach(baggage.set_baggage("handler", str(request)))
    tell(request)
    for task in range(tasks):
        queue.add_task(sync_task if task % 2 else async_task, request, task)


@app.post("/child/async/{request}/{tasks}")
async def child_async(request: int, tasks: int, queue: TracedBackgroundTasks) -> None:
    add(queue, request, tasks)


@app.post("/child/sync/{request}/{tasks}")
def child_sync(request: int, tasks: int, queue: TracedBackgroundTasks) -> None:
    add(queue, request, tasks)


@app.post("/link/async/{request}/{tasks}")
async def link_async(request: int, tasks: int, queue: LinkedTasks) -> None:
    add(queue, request, tasks)


@app.post("/link/sync/{request}/{tasks}")
def link_sync(request: int, tasks: int, queue: LinkedTasks) -> None:
    add(queue, request, tasks)


async def nothing() -> None: ...


@app.post("/many/{tasks}")
async def many(tasks: int, queue: TracedBackgroundTasks) -> None:
    gc.collect()
    seconds, traced = time.process_time(), tracemalloc.get_traced_memory()[0]

    async def measure() -> None:
        app.state.many = {"seconds": time.process_time() - seconds, "bytes": queued}

    for _ in range(tasks):
        queue.add_task(nothing)
    queued = tracemalloc.get_traced_memory()[0] - traced
    queue.add_task(measure)


@app.get("/many")
async def measured() -> dict[str, float]:
    """Return what the last one of many tasks has measured."""
    many: dict[str, float] = app.state.many
    return many


@app.get("/ended")
async def ended() -> int:
    """Return how many spans have ended."""
    written: int = app.state.exporter.written
    return written


@app.get("/state")
async def state() -> dict[str, int]:
    """Return what is there when nothing runs."""
    app.state.exporter.flush()
    gc.collect()
    objects = gc.get_objects()
    return {
        "objects": len(objects),
        "tasks": sum(issubclass(type(each), BackgroundTask) for each in objects),
        "traced": tracemalloc.get_traced_memory()[0],
        **counted(),
    }


def counted() -> dict[str, int]:
    """Count the tasks in the four metrics."""
    data: Any = reader.get_metrics_data()
    counts: Counter[str] = Counter()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics if scope.scope.name == "traced_tasks" else ():
                for point in metric.data.data_points:
                    counts[metric.name] += point.count if hasattr(point, "count") else point.value
    return counts


def main() -> None:
    """Serve the application."""
    app.state.many = {}
    exporter = app.state.exporter = FileExporter(Path(sys.argv[2]))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=600)
    uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
