"""Spans as they could be recorded, made by hand. Times are in milliseconds."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from traced_tasks.demo.spans import Span, Spans

TASK = InstrumentationScope("traced_tasks")


def context(span_id: int, *, trace: int = 1, remote: bool = False) -> SpanContext:
    return SpanContext(trace, span_id, remote, TraceFlags(TraceFlags.SAMPLED))


def made(
    name: str,
    start: float,
    end: float,
    *,
    context: SpanContext,
    parent: SpanContext | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    scope: InstrumentationScope | None = None,
    links: Sequence[SpanContext] = (),
    error: str | None = None,
) -> ReadableSpan:
    return ReadableSpan(
        name,
        context=context,
        parent=parent,
        kind=kind,
        instrumentation_scope=scope,
        attributes={"error.type": error} if error else {},
        links=[Link(target) for target in links],
        status=Status(StatusCode.UNSET if error is None else StatusCode.ERROR),
        start_time=round((start + 1) * 1_000_000),
        end_time=round((end + 1) * 1_000_000),
    )


def task(function: str, start: float, end: float, *, span_id: int = 2, error: str | None = None) -> ReadableSpan:
    """The span of a background task below REQUEST."""
    return made(
        f"background_task {function}", start, end, context=context(span_id), parent=context(1), scope=TASK, error=error
    )


def spans(*recorded: ReadableSpan) -> Spans:
    return Spans(map(Span.of, recorded))


REQUEST = made("POST /checkout", 0, 150, context=context(1), kind=SpanKind.SERVER)
