"""Spans as they could be recorded, made by hand. Times are in milliseconds."""

from collections.abc import Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from traced_tasks.demo.spans import WORKER, Span, Spans

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
    service: str = "shop",
) -> ReadableSpan:
    return ReadableSpan(
        name,
        resource=Resource({"service.name": service}),
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


def handed_over(sent: float, start: float, *, parent: SpanContext | None = None) -> list[ReadableSpan]:
    """A hand-over that ends when it is `sent`, and the span of its task in the worker, with one below it."""
    return [
        made("send notify", 150, sent, context=context(2), parent=context(1), kind=SpanKind.PRODUCER, scope=TASK),
        made(
            "background_task notify",
            start,
            700,
            context=context(3),
            parent=parent or context(2, remote=True),
            kind=SpanKind.CONSUMER,
            scope=TASK,
            service=WORKER,
        ),
        made("GET", start, 690, context=context(4), parent=context(3), kind=SpanKind.CLIENT, service=WORKER),
    ]


def spans(*recorded: ReadableSpan) -> Spans:
    return Spans(map(Span.of, recorded))


REQUEST = made("POST /checkout", 0, 150, context=context(1), kind=SpanKind.SERVER)
