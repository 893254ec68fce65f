from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from shop import app

from traced_tasks import TaskTracing


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    in_tests = TaskTracing(tracer_provider=provider)
    app.dependency_overrides[TaskTracing()] = in_tests
    yield exporter
    del app.dependency_overrides[TaskTracing()]


def test_the_spans_of_an_order(exporter: InMemorySpanExporter) -> None:
    TestClient(app).post("/orders/7")

    charge, receipt = exporter.get_finished_spans()
    assert charge.name == "background_task charge"
    assert receipt.name == "background_task send_receipt"
    assert receipt.status.is_ok
