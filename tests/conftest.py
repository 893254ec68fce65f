import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes
from starlette.types import ASGIApp

from traced_tasks._lost import reporter

HAS_TELEMETRY = find_spec("fastapi.telemetry") is not None  # since FastAPI 0.142

collect_ignore = [
    *([] if HAS_TELEMETRY else ["behaviour/test_fastapi_telemetry.py"]),
    *([] if find_spec("fastapi.sse") else ["behaviour/test_sse.py"]),
    *([] if find_spec("ddtrace") else ["neighbours"]),  # they have a nox session of their own
]


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which not every session has
def pytest_xdist_auto_num_workers() -> int | None:
    """Two for each core, for many tests wait for a server or a browser most of their time."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # whoever sets it knows better
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, 16)  # with more of them there is nothing left but the longest tests


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported is no garbage, and tests that collect garbage need not look through it


def with_request_spans(app: ASGIApp) -> ASGIApp:
    """Give the requests of a FastAPI application a span where FastAPI itself does not yet."""
    if HAS_TELEMETRY or not isinstance(app, FastAPI):
        return app
    return OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])


@dataclass
class Start:
    """What is known when a span starts."""

    name: str
    kind: SpanKind | None
    attributes: set[str]
    links: list[Link]


class WatchingSampler(Sampler):
    def __init__(self) -> None:
        self.starts: list[Start] = []

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.starts.append(Start(name, kind, set(attributes or ()), list(links or ())))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return "WatchingSampler"


class Spans:
    """The spans that ended so far, in the order of their end."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        sampler = WatchingSampler()
        self.starts = sampler.starts
        self.provider = TracerProvider(sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def __call__(self) -> list[ReadableSpan]:
        reporter.flush(10)
        return list(self.exporter.get_finished_spans())

    def tasks(self) -> list[ReadableSpan]:
        """Those that traced_tasks made."""
        return [span for span in self() if scope(span) == "traced_tasks"]

    def __getitem__(self, name: str) -> ReadableSpan:
        """The one with this name."""
        (span,) = [span for span in self() if span.name == name]
        return span


class Metrics:
    """What was measured so far."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def __getitem__(self, name: str) -> Any:
        """The metric with this name, if there is one."""
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            if scope.scope.name == "traced_tasks"
            for metric in scope.metrics
            if metric.name == name
        ]
        return found[0] if found else None

    def points(self, name: str) -> dict[str, Any]:
        """The data points of the metric, by function."""
        metric = self[name]
        return {point.attributes["code.function.name"]: point for point in metric.data.data_points} if metric else {}

    def active(self) -> dict[str, int]:
        return {name: point.value for name, point in self.points("background_task.active").items()}

    def waiting(self) -> dict[str, int]:
        return {name: point.value for name, point in self.points("background_task.waiting").items()}

    def lost(self) -> dict[tuple[str, str], int]:
        """How many were lost, by function and `error.type`."""
        metric = self["background_task.lost"]
        points = metric.data.data_points if metric else []
        return {(each.attributes["code.function.name"], each.attributes["error.type"]): each.value for each in points}


def collect_garbage() -> None:
    """Collect garbage, and wait until what was lost in it is reported."""
    gc.collect()
    reporter.flush(10)


def scope(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether `parent` is the parent of `span`, in one trace."""
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


@pytest.fixture(autouse=True)
def reported() -> Iterator[None]:
    """Nothing that a test loses is reported in the next one, nor counts there among the hundred in a second."""
    yield
    reporter.flush(10)
    reporter._count = 0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """What a fresh global tracer provider records."""
    recorded = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorded.provider)
    yield recorded
    recorded.provider.shutdown()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """What a fresh global meter provider measures."""
    measured = Metrics()
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", measured.provider)
    yield measured
    measured.provider.shutdown()


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[ASGIApp], httpx.AsyncClient]]:
    """Open a client to an app. Its answer is there when the background tasks are done."""
    clients: list[httpx.AsyncClient] = []

    def connect(app: ASGIApp) -> httpx.AsyncClient:
        clients.append(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"))
        return clients[-1]

    yield connect
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(connect: Callable[[ASGIApp], httpx.AsyncClient], app: FastAPI) -> httpx.AsyncClient:
    return connect(with_request_spans(app))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
