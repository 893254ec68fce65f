"""The recorded spans, and the rules by which the story judges them.

A span is in the right place if

1. it does not end before it starts,
2. its parent was recorded (or is in another process),
3. it does not start before its parent,
4. it does not start after its parent's end, and does not end after it: unless it is the span of a background task,
   which says by itself that it is work beyond the response.

What is below a background task is measured against that task, so rule 4 needs to look no further than one step up.

Whether a task failed, or never ran, is another question, which a span in the right place answers.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

SpanId = tuple[int, int]
"""The ids of a trace and of a span in it."""

WORKER = "shop-worker"
"""The service whose spans are those of a worker."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A recorded span, reduced to what a story draws. Times are in nanoseconds since the epoch.

    `background`: it is that of a background task; `lost`: of one that never ran; `worker`: of a worker.
    """

    id: SpanId
    name: str
    kind: str
    start: int
    end: int
    parent: SpanId | None = None
    remote_parent: bool = False
    links: tuple[SpanId, ...] = ()
    background: bool = False
    lost: bool = False
    worker: bool = False
    error: str | None = None

    @classmethod
    def of(cls, span: ReadableSpan) -> Self:
        """Read a span of the SDK."""
        attributes = span.attributes or {}
        start = span.start_time or 0
        # Not by an attribute: a task that never ran has fewer of them.
        background = span.instrumentation_scope is not None and span.instrumentation_scope.name == "traced_tasks"
        error = str(attributes.get("error.type", "error"))
        assert span.context is not None
        return cls(
            id=(span.context.trace_id, span.context.span_id),
            name=span.name,
            kind=span.kind.name.lower(),
            start=start,
            end=span.end_time or start,
            parent=span.parent and (span.parent.trace_id, span.parent.span_id),
            remote_parent=span.parent is not None and span.parent.is_remote,
            links=tuple((link.context.trace_id, link.context.span_id) for link in span.links),
            background=background,
            lost=background and error in ("skipped", "dropped"),
            worker=span.resource.attributes.get("service.name") == WORKER,
            error=error.rpartition(".")[2] if span.status.status_code is StatusCode.ERROR else None,
        )

    @property
    def idle(self) -> bool:
        """Whether nothing ran in its time."""
        return self.lost or self.kind == "waiting"

    @property
    def task(self) -> str:
        """The background task, in a word."""
        return self.name.removeprefix("background_task ")


@dataclass(frozen=True)
class Finding:
    """What is wrong with a span."""

    span: Span
    text: str


class Spans:
    """The spans of a chapter, as traces.

    Args:
        spans: In any order.
    """

    def __init__(self, spans: Iterable[Span]) -> None:
        # One that never ran comes where it would have: when the loss was known.
        self.all: Sequence[Span] = sorted(
            spans, key=lambda span: (span.end, 0) if span.lost else (span.start, -span.end)
        )
        self._by_id = {span.id: span for span in self.all}

    def get(self, span_id: SpanId | None) -> Span | None:
        """Return the span with this id, if it was recorded."""
        return None if span_id is None else self._by_id.get(span_id)

    def traces(self) -> set[int]:
        """Return the ids of the traces."""
        return {trace for trace, _ in self._by_id}

    def lost(self) -> list[Span]:
        """Return the spans of the background tasks that never ran."""
        return [span for span in self.all if span.lost]

    def roots(self) -> list[Span]:
        """Return the spans without a recorded parent, the earliest first."""
        return [span for span in self.all if self.get(span.parent) is None]

    def children(self, parent: Span) -> list[Span]:
        """Return the spans right below `parent`, the earliest first."""
        return [span for span in self.all if span.parent == parent.id]

    def arrived(self, span: Span) -> bool:
        """Return whether `span` is what a worker was given, and not what it made of it."""
        parent = self.get(span.parent)
        return span.worker and (parent is None or not parent.worker)

    def wait(self, span: Span) -> Span | None:
        """Return the time on the broker, from the end of the hand-over, if it was recorded, to the start of `span`."""
        parent = self.get(span.parent)
        if parent is None or not self.arrived(span):
            return None
        # A quick worker starts before the app has heard that the message was sent.
        start = min(parent.end, span.start)
        return Span(id=span.id, name="on the broker", kind="waiting", start=start, end=span.start)

    def findings(self) -> list[Finding]:
        """Return what is wrong, by the rules of this module."""
        return [Finding(span, text) for span in self.all for text in self._wrong(span)]

    def _wrong(self, span: Span) -> Iterator[str]:
        if span.end < span.start:
            yield f"ends {ms(span.start - span.end)} before it starts"
        parent = self.get(span.parent)
        if parent is None:
            if span.parent is not None and not span.remote_parent:
                yield "has a parent that was not recorded"
            return
        if span.start < parent.start:
            yield f"starts {ms(parent.start - span.start)} before its parent {parent.name}"
        if span.background:
            return
        if span.start > parent.end:
            yield (
                f"starts {ms(span.start - parent.end)} after its parent {parent.name} has ended, "
                "and nothing says that it is background work"
            )
        if span.end > parent.end:
            yield f"ends {ms(span.end - parent.end)} after its parent {parent.name}"

    def troubles(self) -> list[str]:
        """Return which background tasks failed, and which never ran."""
        texts = [
            f"{span.task} failed: {span.error}" for span in self.all if span.background and span.error and not span.lost
        ]
        if lost := [span.task for span in self.lost()]:
            texts.append(never_ran(lost))
        return texts

    def explained(self) -> list[str]:
        """Return what is right.

        Where a background task failed: that no other was lost by that. Else: how each stands to what it outlives,
        where rule 4 makes its exception, and which came to a worker.
        """
        tasks = [span for span in self.all if span.background]
        if self.troubles():
            if self.lost():
                return []
            return [f"all {len(tasks)} tasks ran: {', '.join(span.task for span in tasks)}"]
        texts: list[str] = []
        for span in tasks:
            if wait := self.wait(span):
                texts.append(f"{span.name} ran in the worker, after {ms(wait.end - wait.start)} on the broker")
            elif (parent := self.get(span.parent)) and span.end > parent.end:
                texts.append(
                    f"{span.name} ends {ms(span.end - parent.end)} after its parent {parent.name}, "
                    "and says that it is background work"
                )
            texts += [
                f"{span.name} is the root of a trace of its own, linked to {origin.name}"
                for link in span.links
                if span.parent is None and (origin := self.get(link))
            ]
        return texts or ["every span lies within its parent"]


def never_ran(tasks: Sequence[str]) -> str:
    """Return how many tasks never ran, and which."""
    return f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} never ran: {', '.join(tasks)}"


def ms(nanoseconds: int) -> str:
    """Return a time as text in milliseconds, with a decimal where it matters."""
    value = nanoseconds / 1_000_000
    return f"{value:.1f} ms" if abs(value) < 10 else f"{value:.0f} ms"
