"""The way of the story's spans to Jaeger, Tempo or another collector."""

import logging
import os
from collections.abc import Sequence
from logging.handlers import BufferingHandler

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

_TIMEOUT = 2.0
_logger = logging.getLogger("opentelemetry.exporter.otlp")


def endpoint() -> str | None:
    """Return where the environment says that spans go, if it does."""
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def export(spans: Sequence[ReadableSpan]) -> str | None:
    """Send spans to the endpoint that the environment names, by OTLP over HTTP.

    The story does not depend on it: whatever goes wrong is said, not raised, and waited for no longer than two seconds.

    Args:
        spans: The spans.

    Returns:
        Why they did not arrive. `None`: they did.
    """
    said = BufferingHandler(capacity=1000)
    propagate, _logger.propagate = _logger.propagate, False
    _logger.addHandler(said)
    try:
        exporter = OTLPSpanExporter(timeout=_TIMEOUT)
        try:
            if exporter.export(spans) is SpanExportResult.SUCCESS:
                return None
        finally:
            exporter.shutdown()  # type: ignore[no-untyped-call]
        return said.buffer[-1].getMessage()
    except Exception as exc:  # what the environment says about certificates, compression and so on may be wrong, too
        return f"{type(exc).__name__}: {exc}"
    finally:
        _logger.removeHandler(said)
        _logger.propagate = propagate
        said.close()
