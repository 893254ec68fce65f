"""Where the processes of a test write their spans and metrics."""

import json
import os
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

FILE = "TESTS_RECORDING"


class _Spans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _write([json.loads(span.to_json(indent=None)) | {"scope": _scope(span), "pid": os.getpid()} for span in spans])
        return SpanExportResult.SUCCESS


class _Metrics(MetricExporter):
    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> MetricExportResult:
        _write([json.loads(metrics_data.to_json(indent=None))])
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        pass


def _scope(span: ReadableSpan) -> str:
    return span.instrumentation_scope.name if span.instrumentation_scope else ""


def _write(records: list[dict[str, Any]]) -> None:
    with Path(os.environ[FILE]).open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


class _Flush(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        flush()


def flush(**_: Any) -> None:
    """Have this process write its metrics."""
    provider: Any = metrics.get_meter_provider()
    provider.force_flush()


def record(batch: bool = False) -> None:
    """Have this process write its spans and metrics, each span as it ends, or in batches."""
    if FILE in os.environ:
        provider = TracerProvider()
        batches = BatchSpanProcessor(_Spans(), schedule_delay_millis=60_000)
        provider.add_span_processor(batches if batch else SimpleSpanProcessor(_Spans()))
        if not batch:
            provider.add_span_processor(_Flush())
        trace.set_tracer_provider(provider)
        # Without a thread, whose lock a child could be forked off with.
        metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(_Metrics(), inf)]))


class Recording:
    """What a worker has written so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def spans(self) -> list[dict[str, Any]]:
        return [each for each in self._read() if "context" in each]

    def point(self, name: str, function: str, **attributes: str) -> dict[str, Any] | None:
        """Return the newest data point of a metric, of one function."""
        for data in reversed([each for each in self._read() if "resource_metrics" in each]):
            scopes = [scope for resource in data["resource_metrics"] for scope in resource["scope_metrics"]]
            for metric in [metric for scope in scopes for metric in scope["metrics"] if metric["name"] == name]:
                for point in metric["data"]["data_points"]:
                    if point["attributes"] == {"code.function.name": function, **attributes}:
                        return point  # type: ignore[no-any-return]
        return None

    def wait(self, number: int, trace_id: int | None = None, **attributes: str) -> list[dict[str, Any]]:
        """Wait for so many spans that begin a process of a message: those of a trace, or with these attributes."""

        def found() -> list[dict[str, Any]]:
            return [
                span
                for span in self.spans()
                if (trace_id is None or int(span["context"]["trace_id"], 16) == trace_id)
                and all(span["attributes"].get(key.replace("_", ".")) == value for key, value in attributes.items())
            ]

        wait_until(lambda: len(found()) >= number, lambda: f"{number} spans, not {found()}; {self._log()}")
        return found()

    def _log(self) -> str:
        log = self.path.with_name("log")
        return f"the end of the worker's log: {log.read_text()[-5_000:]}" if log.exists() else "no log"


def wait_until(is_so: Callable[[], bool], what: Callable[[], str] = str, timeout: float = 60) -> None:
    end = monotonic() + timeout
    while not is_so():
        assert monotonic() < end, what()
        sleep(0.02)
