"""What traced-tasks tells arrives at a real receiver, by the real exporters."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
from fastapi import FastAPI, HTTPException
from httpx import AsyncClient
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tests.backends.receiver import Received, attributes, receive_grpc, receive_http
from tests.programs import http, serve
from traced_tasks import TracedBackgroundTasks

Receive = Callable[[], AbstractContextManager[Received]]
SpanExporter = type[HttpSpanExporter] | type[GrpcSpanExporter]
MetricExporter = type[HttpMetricExporter] | type[GrpcMetricExporter]


@dataclass
class Backend:
    """A receiver and the providers that export to it."""

    received: Received
    traces: TracerProvider
    metrics: MeterProvider


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    params=[
        pytest.param((receive_http, HttpSpanExporter, HttpMetricExporter), id="http"),
        pytest.param((receive_grpc, GrpcSpanExporter, GrpcMetricExporter), id="grpc"),
    ]
)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Global providers that export to a receiver by OTLP."""
    receive: Receive
    span_exporter: SpanExporter
    metric_exporter: MetricExporter
    receive, span_exporter, metric_exporter = request.param
    with receive() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        shop = Resource.create({"service.name": "shop"})
        traces = TracerProvider(resource=shop)
        traces.add_span_processor(BatchSpanProcessor(span_exporter(), schedule_delay_millis=50))
        measurements = MeterProvider([PeriodicExportingMetricReader(metric_exporter())], shop)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", traces)
        monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", measurements)
        yield Backend(received, traces, measurements)
        measurements.shutdown()
        traces.shutdown()


async def notify() -> None:
    with trace.get_tracer("shop").start_as_current_span("mail"):
        pass


def write_report() -> None: ...


async def charge() -> None:
    raise TimeoutError("the bank does not answer")


def send_receipt() -> None: ...


@pytest.fixture
def app(backend: Backend) -> FastAPI:
    app = FastAPI(telemetry={"operation_spans": False})

    @app.post("/orders")
    async def order(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        tasks.with_options(propagation_style="link", attributes={"shop.area": "reports"}).add_task(write_report)
        tasks.add_task(charge)
        tasks.add_task(send_receipt)

    @app.post("/sold-out")
    async def sold_out(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        raise HTTPException(409)

    return app


async def test_spans(client: AsyncClient, backend: Backend) -> None:
    """A span arrives for each task that ran or was skipped: its place, attributes, status and exception."""
    with pytest.raises(TimeoutError):
        await client.post("/orders")
    backend.traces.force_flush()

    received = backend.received
    assert received.services == {"shop"}
    assert [span.name for span in received.task_spans] == [
        "background_task notify",
        "background_task write_report",
        "background_task charge",
        "background_task send_receipt",
    ]
    request = received["POST /orders"]
    notified, reported, charged, skipped = received.task_spans

    for task in (notified, charged, skipped):
        assert (task.trace_id, task.parent_span_id) == (request.trace_id, request.span_id)
        assert (task.kind, list(task.links)) == (Span.SPAN_KIND_INTERNAL, [])
    assert (received["mail"].trace_id, received["mail"].parent_span_id) == (notified.trace_id, notified.span_id)
    assert attributes(notified.attributes)["code.function.name"] == "tests.backends.test_otlp.notify"
    waited = attributes(notified.attributes)["background_task.queue.duration"]
    assert isinstance(waited, float)
    assert 0 < waited < 20
    assert notified.status.code == Status.STATUS_CODE_UNSET

    assert (reported.parent_span_id, reported.kind) == (b"", Span.SPAN_KIND_CONSUMER)
    assert [(link.trace_id, link.span_id) for link in reported.links] == [(request.trace_id, request.span_id)]
    assert reported.trace_id != request.trace_id
    assert attributes(reported.attributes)["shop.area"] == "reports"

    assert (charged.status.code, charged.status.message) == (
        Status.STATUS_CODE_ERROR,
        "TimeoutError: the bank does not answer",
    )
    assert attributes(charged.attributes)["error.type"] == "TimeoutError"
    (event,) = charged.events
    assert event.name == "exception"
    assert attributes(event.attributes)["exception.message"] == "the bank does not answer"

    assert skipped.status.code == Status.STATUS_CODE_ERROR
    assert skipped.status.message.endswith("charge, before it in the queue, failed with TimeoutError")
    assert attributes(skipped.attributes)["error.type"] == "skipped"
    assert skipped.start_time_unix_nano < charged.start_time_unix_nano < skipped.end_time_unix_nano


async def test_a_dropped_task(client: AsyncClient, backend: Backend) -> None:
    """The span of a task whose handler raised arrives below that of its request, and so does the count."""
    await client.post("/sold-out")
    gc.collect()
    request, dropped = backend.received["POST /sold-out"], backend.received["background_task notify"]
    backend.received.wait(lambda: backend.metrics.force_flush() and "background_task.lost" in backend.received.metrics)

    assert (dropped.trace_id, dropped.parent_span_id) == (request.trace_id, request.span_id)
    assert dropped.status.code == Status.STATUS_CODE_ERROR
    assert attributes(dropped.attributes) == {
        "code.function.name": "tests.backends.test_otlp.notify",
        "error.type": "dropped",
    }
    (point,) = backend.received.metrics["background_task.lost"].sum.data_points
    assert (point.as_int, attributes(point.attributes)["error.type"]) == (1, "dropped")


async def test_metrics(client: AsyncClient, backend: Backend) -> None:
    """The four metrics arrive, with their units, kinds, counts and attributes."""
    with pytest.raises(TimeoutError):
        await client.post("/orders")
    backend.metrics.force_flush()

    measured = backend.received.metrics
    assert {name: metric.unit for name, metric in measured.items()} == {
        "background_task.duration": "s",
        "background_task.queue.duration": "s",
        "background_task.active": "{task}",
        "background_task.waiting": "{task}",
        "background_task.lost": "{task}",
    }

    def by_function(name: str, points: str) -> dict[object, object]:
        """The `error.type` of each function's data point."""
        found = [attributes(point.attributes) for point in getattr(measured[name], points).data_points]
        return {each["code.function.name"]: each.get("error.type") for each in found}

    here = "tests.backends.test_otlp"
    ran = {f"{here}.notify": None, f"{here}.write_report": None, f"{here}.charge": None}
    assert by_function("background_task.duration", "histogram") == {**ran, f"{here}.charge": "TimeoutError"}
    assert by_function("background_task.queue.duration", "histogram") == ran
    assert by_function("background_task.active", "sum").items() >= ran.items()
    assert by_function("background_task.lost", "sum") == {f"{here}.send_receipt": "skipped"}
    for point in measured["background_task.duration"].histogram.data_points:
        assert (point.count, list(point.explicit_bounds)[:3]) == (1, [0.001, 0.0025, 0.005])
    assert not measured["background_task.active"].sum.is_monotonic
    assert {point.as_int for point in measured["background_task.active"].sum.data_points} == {0}
    assert [point.as_int for point in measured["background_task.lost"].sum.data_points] == [1]


# docs/backends.md


def test_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program exports the tree that the page shows, all of it before the server has ended."""
    with receive_http() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        with serve("otlp") as (url, server):
            assert http.post(f"{url}/orders/7").status_code == 200
            assert server.stderr
            assert any(line.startswith("TimeoutError: the bank is silent") for line in server.stderr)
            server.terminate()
            server.communicate()

    assert received.services == {"shop"}
    request = received["POST /orders/{order_id}"]
    tasks = {span.name.removeprefix("background_task "): span for span in received.task_spans}
    assert list(tasks) == ["notify", "write_report", "charge", "send_receipt"]
    for name in ("notify", "charge", "send_receipt"):
        assert tasks[name].parent_span_id == request.span_id
    assert received["POST"].parent_span_id == tasks["notify"].span_id
    assert received["POST /mail"].parent_span_id == received["POST"].span_id
    assert [link.span_id for link in tasks["write_report"].links] == [request.span_id]
    assert tasks["charge"].status.message == "TimeoutError: the bank is silent about order 7"
    assert attributes(tasks["send_receipt"].attributes) == {
        "code.function.name": "otlp.send_receipt",
        "error.type": "skipped",
    }


def test_otlp_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program exports what it has measured when its server ends."""
    with receive_http() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        with serve("otlp_metrics") as (url, server):
            assert http.post(f"{url}/orders/7").status_code == 200
            server.terminate()
            server.communicate()

    assert set(received.metrics) == {
        "background_task.duration",
        "background_task.queue.duration",
        "background_task.active",
        "background_task.waiting",
    }
