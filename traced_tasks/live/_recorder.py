"""What the page knows: the last requests with background work, bounded, from a span processor.

Rule 1: No lock. A garbage collection may end spans, and begins anywhere, in this module as well. Every step is one
that a dict, a set or a deque takes as a whole.

Rule 2: `on_start` and `on_end` raise nothing. The SDK would let it through, into the application.

Rule 3: A span is in the index before its card can be evicted, and a card is marked as evicted before its spans leave
the index. Whoever comes second cleans up.

Rule 4: What has ended is copied, with what is long cut short: a span holds all of its attributes and stack traces.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from time import perf_counter, time
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakSet

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from traced_tasks._providers import at_fork

QUIET = 1000  # requests without background work, so far: some may still come
SPANS = 100  # of a card
NAME, KEY, VALUE, VALUES, DESCRIPTION = 120, 60, 200, 12, 500  # characters, or how many
_SPARED = 32  # cards in which something runs, in search of one to evict

# Who makes the span of a hand-over where ours gives way.
_ENGINES = {"opentelemetry.instrumentation.celery", "taskiq.middlewares.opentelemetry_middleware"}
# What is kept of a span that is not a task's.
_SHOWN = {
    "http.request.method",
    "http.method",
    "http.route",
    "url.path",
    "url.full",
    "http.url",
    "http.target",
    "http.response.status_code",
    "http.status_code",
    "server.address",
    "net.peer.name",
    "error.type",
}

_LARGE = 2**63
_LOST = {"skipped", "dropped", "never_awaited", "never_iterated", "unconfirmed"}


class Ended(NamedTuple):
    """A copy of a span, as far as it is shown."""

    span_id: int
    trace_id: int
    parent_id: int | None
    name: str
    kind: Literal["task", "send", "span"]
    start: int
    end: int | None
    outcome: str | None
    """What became of a task."""
    failed: bool
    description: str
    attributes: dict[str, object]


class Card:
    """A request, or whatever else is the root of its spans in this process, and the background work behind it."""

    __slots__ = ("changed", "cut", "evicted", "has_work", "is_exact", "number", "places", "root", "root_id",
                 "sent_at", "spans", "trace_id")  # fmt: skip

    def __init__(self, number: int, root: Span | None, root_id: int, trace_id: int) -> None:
        self.number, self.root_id, self.trace_id = number, root_id, trace_id
        self.root: Span | Ended | None = root  # `None`: a task
        self.places: set[int] = set()  # what is in the index of the others: a task's parent may be one of them
        self.spans: dict[int, Span | Ended] = {}  # the tasks', and those inside of them
        self.sent_at: int | None = None  # the end of the last span that sent a part of the body
        self.is_exact = root is not None and _scope(root) == "fastapi"  # it ends with the response
        self.cut = 0  # spans that were too many
        self.changed = perf_counter()
        self.has_work = self.evicted = False

    def is_open(self) -> bool:
        """Whether something in it runs."""
        return isinstance(self.root, Span) or any(isinstance(span, Span) for span in tuple(self.spans.values()))


class Recorder(SpanProcessor):
    """Keeps what the page shows."""

    def __init__(self, keep: int) -> None:
        self._keep, self._most = keep, max(4 * SPANS, keep * SPANS // 5)
        self.begin()
        _recorders.add(self)

    def begin(self) -> None:
        """Begin with nothing, as in a process that has been forked off."""
        self.since = time()
        self.totals: Counter[str] = Counter()
        """Tasks by what became of them, `evicted` cards, and `missed` starts and ends of spans, for a failure here."""
        self._index: dict[int, tuple[Card, bool]] = {}  # by the id of a span; whether it is a task's, or inside of one
        self._traces: dict[int, Card] = {}  # the newest of each
        self._quiet: deque[Card] = deque()
        self._kept: deque[Card] = deque()
        self._size = self._number = 0

    def cards(self) -> list[Card]:
        """Return what is kept, the newest first."""
        return sorted(self._kept, key=lambda card: -card.number)

    def of(self, span_id: int, trace_id: int) -> Card | None:
        """Return the card of a task that waits, by the span that was current at `add_task`, and keep it."""
        found = self._index.get(span_id)
        card = self._traces.get(trace_id) if found is None else found[0]
        if card is not None and not card.has_work:
            self._keep_card(card)
        return card

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        try:
            parent, span_id = span.parent, _context(span).span_id
            found = None if parent is None or _is_request(span, parent) else self._index.get(parent.span_id)
            is_task = is_work(span)
            if found is None:
                found = self._find(span, is_task)
            card, is_inside = found
            if is_task and not is_inside:
                is_inside = True
                found = card, True
                if not card.has_work:
                    self._keep_card(card)
            self._index[span_id] = found
            if is_inside:
                card.spans[span_id] = span
                card.changed = perf_counter()
                self._size += 1
                if self._size > self._most:
                    self._evict_from(self._kept)
            else:
                card.places.add(span_id)
            if card.evicted or len(card.spans) > 4 * SPANS or len(card.places) > 4 * SPANS:
                self._forget(card, span_id)
        except Exception:
            self.totals["missed"] += 1

    def _find(self, span: Span, is_task: bool) -> tuple[Card, bool]:
        """Return where a span belongs whose parent is not in the index."""
        parent, context = span.parent, _context(span)
        if is_task and parent is None:
            for link in span.links:
                if (linked := self._index.get(link.context.span_id)) is not None:
                    return linked[0], False
        if is_task and parent is not None and not parent.is_remote and parent.trace_id in self._traces:
            return self._traces[parent.trace_id], False
        self._number += 1
        card = Card(self._number, None if is_task else span, context.span_id, context.trace_id)
        self._traces[context.trace_id] = card
        self._quiet.append(card)
        if len(self._quiet) > QUIET:
            self._evict_from(self._quiet)
        return card, False

    def on_end(self, span: ReadableSpan) -> None:
        try:
            span_id = _context(span).span_id
            found = self._index.get(span_id)
            if found is None:
                if is_work(span):
                    self.totals[_outcome(span)] += 1
                return
            card, is_inside = found
            if is_inside:
                ended = copied(span)
                if ended.outcome is not None:
                    self.totals[ended.outcome] += 1
                # What runs is shown, whatever there is before it, and what has failed stays longer.
                if len(card.spans) > (2 * SPANS if ended.failed else SPANS):
                    self._forget(card, span_id)
                else:
                    card.spans[span_id] = ended
            elif span_id == card.root_id:
                card.root = copied(span)
            elif span.parent is not None and span.parent.span_id == card.root_id and span.name.endswith(" http send"):
                if (span.attributes or {}).get("asgi.event.type") == "http.response.body":
                    card.sent_at = span.end_time
            elif len(card.places) > SPANS:
                self._forget(card, span_id)
            card.changed = perf_counter()
        except Exception:
            self.totals["missed"] += 1

    def _forget(self, card: Card, span_id: int) -> None:
        self._index.pop(span_id, None)
        card.places.discard(span_id)
        if card.spans.pop(span_id, None) is not None:
            self._size -= 1
            card.cut += 1

    def _keep_card(self, card: Card) -> None:
        card.has_work = True
        card.changed = perf_counter()
        self._kept.append(card)
        if len(self._kept) > self._keep:
            self._evict_from(self._kept)

    def _evict_from(self, cards: deque[Card]) -> None:
        spared = 0
        while True:
            card = cards.popleft()
            if card.has_work and cards is self._quiet:
                return  # it has gone over to those that are kept
            if spared == _SPARED or not card.is_open():
                break
            cards.append(card)
            spared += 1
        card.evicted = True
        self.totals["evicted"] += card.has_work
        spans, card.spans = card.spans, {}  # so that none of them is counted twice
        for span_id in (*card.places, *spans):
            self._index.pop(span_id, None)
        self._size -= len(spans)
        if self._traces.get(card.trace_id) is card:
            del self._traces[card.trace_id]


def _context(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None  # it is so only of one that is made by hand
    return context


def is_work(span: ReadableSpan) -> bool:
    """Whether a span is that of a task, or of its hand-over."""
    name = _scope(span)
    return name == "traced_tasks" or (name in _ENGINES and span.kind is SpanKind.PRODUCER)


def _scope(span: ReadableSpan) -> str:
    return "" if span.instrumentation_scope is None else span.instrumentation_scope.name


def _is_request(span: ReadableSpan, parent: SpanContext) -> bool:
    """Whether it is a request, even if who made it is in this process as well."""
    return parent.is_remote and span.kind is SpanKind.SERVER


def _outcome(span: ReadableSpan) -> str:
    if span.status.status_code is not StatusCode.ERROR:
        return "sent" if span.kind is SpanKind.PRODUCER else "done"
    error = (span.attributes or {}).get("error.type")
    return str(error) if error in _LOST else "failed"


def copied(span: ReadableSpan) -> Ended:
    """Copy a span, with what is long cut short."""
    context, parent, status = _context(span), span.parent, span.status
    start, end = span.start_time, span.end_time
    kind: Literal["task", "send", "span"] = "span"
    if is_work(span):
        kind = "send" if span.kind is SpanKind.PRODUCER else "task"
    # By the SDK's own copy: to read them through its mapping takes as long as all else here.
    attributes = cast("dict[str, object]", span.attributes).copy()
    if kind == "span":
        attributes = {key: value for key, value in attributes.items() if key in _SHOWN}
    is_long = len(attributes) > VALUES
    for value in attributes.values():
        if type(value) is not float and not _is_short(value):
            is_long = True
            break
    if is_long:
        attributes = _bounded(attributes)
    return Ended(
        context.span_id,
        context.trace_id,
        None if parent is None else parent.span_id,
        cut(str(span.name), NAME),  # which the SDK does not check
        kind,
        start if type(start) is int else _nanoseconds(start),
        end if end is None or type(end) is int else _nanoseconds(end),
        None if kind == "span" or end is None else _outcome(span),
        status.status_code is StatusCode.ERROR,
        cut(status.description or "", DESCRIPTION),
        attributes,
    )


def _nanoseconds(given: Any) -> int:
    try:
        return int(given)
    except (TypeError, ValueError):  # the SDK takes anything
        return 0


def _is_short(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= VALUE
    return isinstance(value, (float, bool)) or (isinstance(value, int) and -_LARGE < value < _LARGE)


def _bounded(attributes: Mapping[str, object]) -> dict[str, object]:
    bounded = {cut(key, KEY): _shortened(value) for key, value in islice(attributes.items(), VALUES)}
    if len(attributes) > VALUES:
        bounded["..."] = f"{len(attributes) - VALUES} more"
    return bounded


def _shortened(value: object) -> object:
    if _is_short(value):
        return value
    if isinstance(value, int):
        return "a large number"  # which Python may refuse to write out
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return cut(", ".join(str(_shortened(each)) for each in islice(value, VALUES)), VALUE)  # pyright: ignore
    return cut(str(value), VALUE)


def cut(text: str, length: int) -> str:
    """Return a text, or the beginning of one that is too long."""
    return text if len(text) <= length else text[: length - 3] + "..."  # ASCII: one byte a character


def _forked() -> None:
    for recorder in _recorders:
        recorder.begin()


_recorders = WeakSet[Recorder]()
at_fork(after_in_child=_forked)
