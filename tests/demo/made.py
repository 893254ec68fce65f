"""Spans as they could be recorded, made by hand. Times are in milliseconds."""

from collections.abc import Mapping, Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from traced_tasks.demo.spans import Span, Spans

TASK = {"background_task.queue.duration": 0.001}


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
    attributes: Mapping[str, AttributeValue] | None = None,
    links: Sequence[SpanContext] = (),
    failed: bool = False,
) -> ReadableSpan:
    return ReadableSpan(
        name,
        context=context,
        parent=parent,
        kind=kind,
        attributes=attributes,
        links=[Link(target) for target in links],
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
        start_time=round((start + 1) * 1_000_000),
        end_time=round((end + 1) * 1_000_000),
    )


def spans(*recorded: ReadableSpan) -> Spans:
    return Spans(map(Span.of, recorded))


REQUEST = made("POST /checkout", 0, 150, context=context(1), kind=SpanKind.SERVER)
