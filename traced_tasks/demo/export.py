"""The way of the stories' spans to Jaeger, Tempo or another collector."""

import os
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from traced_tasks.demo.logs import kept

_TIMEOUT = 2.0


def endpoint() -> str | None:
    """Return where the environment says that spans go, if it does."""
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def export(spans: Sequence[ReadableSpan]) -> str | None:
    """Send spans to the endpoint that the environment names, by OTLP over HTTP.

    The stories do not depend on it: whatever goes wrong is said, not raised, and waited for no longer than two seconds.

    Args:
        spans: The spans.

    Returns:
        Why they did not arrive. `None`: they did.
    """
    with kept("opentelemetry.exporter.otlp") as said:
        try:
            exporter = OTLPSpanExporter(timeout=_TIMEOUT)
            try:
                if exporter.export(spans) is SpanExportResult.SUCCESS:
                    return None
            finally:
                exporter.shutdown()  # type: ignore[no-untyped-call]
            return said[-1].getMessage()
        except (
            Exception
        ) as exc:  # what the environment says about certificates, compression and so on may be wrong, too
            return f"{type(exc).__name__}: {exc}"
