"""One chapter of a story: it is run for real, and recorded."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time_ns

import httpx
from fastapi import FastAPI
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SDKMeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData, NumberDataPoint
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from traced_tasks.demo.logs import kept
from traced_tasks.demo.process import Worker
from traced_tasks.demo.server import serve


@dataclass(frozen=True)
class Chapter:
    """One way to do it.

    Attributes:
        title: What is tried.
        text: A sentence about it.
        create_app: Makes the app, given the providers that record its spans and its metrics.
        path: The path of the request.
        method: The method of the request.
        worker: Runs what the app hands over.
        never_ran: Tells the tasks that never ran, as the app itself knows.
    """

    title: str
    text: str
    create_app: Callable[[TracerProvider, MeterProvider], FastAPI]
    path: str
    method: str = "POST"
    worker: Worker | None = None
    never_ran: Callable[[], Sequence[str]] = list


@dataclass(frozen=True)
class Recording:
    """What was recorded in a chapter.

    Attributes:
        spans: Its spans.
        answered: When the response had reached the client, in nanoseconds since the epoch.
        ended: When the last was logged that was logged at all.
        logged: What traced-tasks and the server said meanwhile.
        counted: What traced-tasks counted of tasks that were lost.
        untold: The tasks that never ran, and that no span, log line or metric names.
    """

    spans: Sequence[ReadableSpan]
    answered: int
    ended: int
    logged: Sequence[str]
    counted: Sequence[str]
    untold: Sequence[str]


def record(
    chapter: Chapter, client: httpx.Client, progress: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Recording:
    """Run a chapter: serve its app, send its request, wait for the work behind the response.

    Args:
        chapter: The chapter.
        client: Sends the request. It is not instrumented.
        progress: Is told what is waited for.
        check: Is called while the work is waited for. If it raises, the wait is over.

    Raises:
        OSError: There is no port for the app, or it cannot be reached, or no span was recorded, or the worker fails.
    """
    if chapter.worker:
        progress("waiting for the worker to come up")
        chapter.worker.wait_until_ready(check)
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meter_provider = SDKMeterProvider([reader], shutdown_on_exit=False)
    with kept("traced_tasks") as said, kept("uvicorn.error") as said_by_server:
        with serve(chapter.create_app(provider, meter_provider), check) as url:
            progress(f"{chapter.method} {chapter.path}: waiting for the response")
            try:
                client.request(chapter.method, f"{url}{chapter.path}")
            except httpx.HTTPError as exc:
                raise OSError(f"the app at {url} does not answer: {exc}") from exc
            answered = time_ns()
            progress(f"{chapter.method} {chapter.path}: the response is here, waiting for the work behind it")
        entries = sorted([*said, *said_by_server], key=lambda entry: entry.created)
    measured = reader.get_metrics_data() or MetricsData([])
    provider.shutdown()
    meter_provider.shutdown()
    spans = exporter.get_finished_spans()
    if not spans:
        raise OSError("no span was recorded; is OTEL_SDK_DISABLED set?")
    if chapter.worker:
        spans += tuple(chapter.worker.spans(spans, check))
    return Recording(
        spans,
        answered,
        ended=max((round(entry.created * 1e9) for entry in entries), default=0),
        logged=[_said(entry) for entry in entries],
        counted=[f"background_task.lost is {lost}"] if (lost := _lost(measured)) else [],
        untold=_untold(
            chapter.never_ran(),
            *(span.to_json() for span in spans),
            *map(logging.Formatter().format, entries),
            measured.to_json(),
        ),
    )


def _said(entry: logging.LogRecord) -> str:
    # Of a traceback, only what it is about.
    error = entry.exc_info and entry.exc_info[0]
    return entry.getMessage().strip() + (f" ({error.__name__}, with its traceback)" if error else "")


def _lost(measured: MetricsData) -> float:
    return sum(
        point.value
        for resource in measured.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "background_task.lost"
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    )


def _untold(tasks: Sequence[str], *told: str) -> list[str]:
    return [task for task in tasks if not any(task in text for text in told)]
