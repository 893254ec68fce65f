"""What the page knows, and for how long: grouped by request, bounded, and never in the application's way."""

import gc
import os
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from tests.conftest import Spans, collect_garbage, with_request_spans
from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.live import _recorder
from traced_tasks.live._recorder import Card, Ended, Recorder


class Recorded:
    """A provider, and what is recorded of its spans."""

    def __init__(self, keep: int = 200) -> None:
        self.recorder = Recorder(keep)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.recorder)
        self.http, self.tasks, self.sql = map(self.provider.get_tracer, ("http", "traced_tasks", "sql"))

    def request(self, name: str = "POST /checkout") -> Context:
        """A request that has been answered."""
        span = self.http.start_span(name)
        span.end()
        return trace.set_span_in_context(span)

    def task(self, context: Context | None, name: str = "notify", error: str | None = None, **options: Any) -> Context:
        """A task that has ended."""
        span = self.tasks.start_span(f"background_task {name}", context, **options)
        if error:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR, f"it was {error}")
        span.end()
        return trace.set_span_in_context(span)

    def card(self) -> Card:
        (card,) = self.recorder.cards()
        return card

    def names(self) -> list[list[str]]:
        """Of the spans of each card, the newest first."""
        return [[span.name for span in card.spans.values()] for card in self.recorder.cards()]

    def is_empty_but(self, cards: int) -> bool:
        """Whether nothing is left of what was evicted."""
        index = self.recorder._index
        left = [card for card in (*self.recorder._kept, *self.recorder._quiet) if not card.evicted]
        known = {span_id for card in left for span_id in (*card.places, *card.spans)}
        return len(self.recorder.cards()) == cards and set(index) == known


def remote(trace_id: int) -> NonRecordingSpan:
    """What a caller's `traceparent` says."""
    return NonRecordingSpan(SpanContext(trace_id, 8, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_the_spans_inside_of_a_task_are_its_own(recorded: Recorded) -> None:
    """What a task does is in the card of its request, and what the request itself did is not."""
    with recorded.http.start_as_current_span("POST /checkout") as request, recorded.sql.start_as_current_span("SELECT"):
        pass
    task = recorded.tasks.start_span("background_task notify", trace.set_span_in_context(request))
    recorded.sql.start_span("INSERT", trace.set_span_in_context(task)).end()
    task.end()
    assert recorded.names() == [["background_task notify", "INSERT"]]
    assert isinstance(recorded.card().root, Ended)


def test_a_task_below_a_span_of_the_handler(recorded: Recorded) -> None:
    """A task that was added inside of a span is in the card of the request that the span belongs to."""
    with recorded.http.start_as_current_span("POST /checkout"), recorded.sql.start_as_current_span("SELECT") as inner:
        pass
    recorded.task(trace.set_span_in_context(inner))
    assert recorded.names() == [["background_task notify"]]
    assert recorded.card().root is not None


def test_two_requests_of_one_trace_are_two_cards(recorded: Recorded) -> None:
    """A caller that asks twice in one trace made two requests, each with its own tasks."""
    recorded = Recorded(keep=2)
    for number in (1, 2):
        with recorded.http.start_as_current_span("POST /checkout", trace.set_span_in_context(remote(7))) as request:
            pass
        recorded.task(trace.set_span_in_context(request), f"notify {number}")
    assert recorded.names() == [["background_task notify 2"], ["background_task notify 1"]]
    recorded.task(recorded.request())
    assert recorded.names() == [["background_task notify"], ["background_task notify 2"]]
    assert recorded.is_empty_but(2)


def test_a_linked_task_is_beside_its_request(recorded: Recorded) -> None:
    """A task in a trace of its own is in the card of the span that it is linked to, and so is what it does."""
    origin = trace.get_current_span(recorded.request()).get_span_context()
    unknown = Link(SpanContext(1, 2, is_remote=True))
    task = recorded.task(Context(), links=[unknown, Link(origin)], kind=SpanKind.CONSUMER)
    recorded.sql.start_span("INSERT", task).end()
    assert recorded.names() == [["background_task notify", "INSERT"]]


def test_a_task_without_a_request(recorded: Recorded) -> None:
    """A task of nobody's request, and one whose link leads nowhere, is a card by itself."""
    recorded.task(Context())
    recorded.task(Context(), "linked", links=[Link(SpanContext(1, 2, is_remote=True))])
    recorded.task(trace.set_span_in_context(remote(7)), "remote")
    assert recorded.names() == [["background_task remote"], ["background_task linked"], ["background_task notify"]]
    assert [card.root for card in recorded.recorder.cards()] == [None, None, None]


def test_a_span_whose_parent_is_not_known(recorded: Recorded) -> None:
    """A task whose parent was one span too many of its request is found by the trace; another span is no task."""
    with recorded.http.start_as_current_span("POST /checkout") as request:
        for _ in range(_recorder.SPANS + 5):
            with recorded.sql.start_as_current_span("SELECT") as inner:
                pass
    recorded.task(trace.set_span_in_context(inner))
    recorded.sql.start_span("SELECT", trace.set_span_in_context(inner)).end()
    assert recorded.names() == [["background_task notify"]]
    root = recorded.card().root
    assert root is not None
    assert root.name == request.name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "done"),
        ("ValueError", "failed"),
        ("skipped", "skipped"),
        ("dropped", "dropped"),
        ("never_awaited", "never_awaited"),
        ("never_iterated", "never_iterated"),
        ("unconfirmed", "unconfirmed"),
    ],
)
def test_what_became_of_a_task(recorded: Recorded, error: str | None, outcome: str) -> None:
    """Each outcome is counted, and is that of the span, with its reason."""
    recorded.task(recorded.request(), error=error)
    (span,) = recorded.card().spans.values()
    assert isinstance(span, Ended)
    assert (span.outcome, span.failed) == (outcome, error is not None)
    assert span.description == (f"it was {error}" if error else "")
    assert recorded.recorder.totals == {outcome: 1}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_real_tasks(spans: Spans) -> None:
    """What an application's tasks become is what the recorder says of them."""
    recorder = Recorder(10)
    spans.provider.add_span_processor(recorder)
    app = FastAPI()

    @app.post("/signup")
    async def signup(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ok)
        tasks.add_task(fail)
        tasks.add_task(ok)

    @app.post("/coupon")
    async def coupon(tasks: Annotated[TracedBackgroundTasks, TaskTracing(propagation_style="link")]) -> None:
        tasks.add_task(ok)
        raise HTTPException(409)

    @app.post("/welcome")
    async def welcome(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(lambda: ok())

    async def ok() -> None: ...

    async def fail() -> None:
        raise ValueError("no")

    client = TestClient(with_request_spans(app), raise_server_exceptions=False)
    for path in ("/signup", "/coupon", "/welcome"):
        client.post(path)
    collect_garbage()
    outcomes = [[span.outcome for span in card.spans.values()] for card in recorder.cards()]  # type: ignore[union-attr]
    assert outcomes == [["never_awaited"], ["dropped"], ["done", "failed", "skipped"]]


@pytest.mark.parametrize(
    "scope", ["traced_tasks", "opentelemetry.instrumentation.celery", "taskiq.middlewares.opentelemetry_middleware"]
)
def test_a_hand_over(recorded: Recorded, scope: str) -> None:
    """A task that a worker runs is there as what handed it over, whoever made that span; a consumer's is not."""
    tracer = recorded.provider.get_tracer(scope)
    request = recorded.request()
    tracer.start_span("send notify", request, SpanKind.PRODUCER).end()
    tracer.start_span("run notify", request, SpanKind.INTERNAL).end()
    kinds = [span.kind for span in recorded.card().spans.values() if isinstance(span, Ended)]
    assert kinds == (["send", "task"] if scope == "traced_tasks" else ["send"])
    assert recorded.recorder.totals["sent"] == 1


def test_the_last_sent_body(spans: Spans) -> None:
    """Beside `FastAPIInstrumentor`, whose request span may be open for longer, the last body says when it had gone."""
    recorder = Recorder(10)
    spans.provider.add_span_processor(recorder)
    app = FastAPI(telemetry={"tracing": False})

    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(lambda: None)

    FastAPIInstrumentor.instrument_app(app, tracer_provider=spans.provider)
    try:
        TestClient(app).post("/checkout")
    finally:
        FastAPIInstrumentor.uninstrument_app(app)
    (card,) = recorder.cards()
    sends = [span.end_time for span in spans() if span.name.endswith("http send")]
    assert card.sent_at == sends[-1]


def test_the_oldest_are_evicted(recorded: Recorded) -> None:
    """More requests than are kept: the newest stay, the others leave nothing behind, and are counted."""
    recorded = Recorded(keep=3)
    for number in range(10):
        request = recorded.request(f"POST /{number}")
        recorded.sql.start_span("SELECT", recorded.task(request)).end()
    assert [card.root.name for card in recorded.recorder.cards() if card.root] == ["POST /9", "POST /8", "POST /7"]
    assert recorded.recorder.totals == {"done": 10, "evicted": 7}
    assert recorded.is_empty_but(3)


def test_what_runs_is_evicted_last() -> None:
    """A long task is still there when many short ones have come and gone behind it."""
    recorded = Recorded(keep=3)
    long = recorded.tasks.start_span("background_task export", recorded.request())
    for _ in range(10):
        recorded.task(recorded.request())
    assert "background_task export" in {name for names in recorded.names() for name in names}
    long.end()
    for _ in range(10):
        recorded.task(recorded.request())
    assert recorded.is_empty_but(3)


def test_if_all_run_the_oldest_is_evicted() -> None:
    """There is a bound for what runs as well, and a task that ends behind it is still counted."""
    recorded = Recorded(keep=3)
    started = [recorded.tasks.start_span("background_task export", recorded.request()) for _ in range(100)]
    assert len(recorded.recorder.cards()) == 3
    for span in started:
        span.end()
    assert recorded.recorder.totals["done"] == 100


def test_a_slow_handler_among_many_requests(recorded: Recorded) -> None:
    """A request that is answered after thousands of others, and has a task then, is known."""
    slow = recorded.http.start_span("POST /slow")
    for _ in range(3 * _recorder.QUIET):
        recorded.request("GET /")
    slow.end()
    recorded.task(trace.set_span_in_context(slow))
    root = recorded.card().root
    assert root is not None
    assert root.name == "POST /slow"


def test_a_task_with_many_spans(recorded: Recorded) -> None:
    """Of a task's spans the first are kept, with what runs and what failed; how many are not is known."""
    task = recorded.tasks.start_span("background_task export", recorded.request())
    inside = trace.set_span_in_context(task)
    for number in range(_recorder.SPANS + 50):
        recorded.sql.start_span(f"page {number}", inside).end()
    failed = recorded.sql.start_span("page failed", inside)
    failed.set_status(StatusCode.ERROR)
    failed.end()
    running = recorded.sql.start_span("page running", inside)
    names = {span.name for span in recorded.card().spans.values()}
    assert {"background_task export", "page 0", "page failed", "page running"} <= names
    assert len(names) <= _recorder.SPANS + 3
    assert recorded.card().cut > 40
    running.end()
    task.end()
    assert recorded.is_empty_but(1)


def test_very_many_at_once(recorded: Recorded) -> None:
    """Thousands of spans that are open at the same time are bounded as well."""
    inside = trace.set_span_in_context(recorded.tasks.start_span("background_task export", recorded.request()))
    started = [recorded.sql.start_span(f"page {number}", inside) for number in range(10 * _recorder.SPANS)]
    assert len(recorded.card().spans) <= 4 * _recorder.SPANS
    for span in started:
        span.end()
    assert len(recorded.card().spans) <= 4 * _recorder.SPANS
    assert recorded.is_empty_but(1)


def test_cards_that_are_full_leave_room() -> None:
    """There is a bound for the spans of all cards, below that of each times their number."""
    recorded = Recorded(keep=100)
    for _ in range(100):
        task = recorded.task(recorded.request())
        for _ in range(_recorder.SPANS):
            recorded.sql.start_span("SELECT", task).end()
    assert 15 < len(recorded.recorder.cards()) < 25
    assert recorded.is_empty_but(len(recorded.recorder.cards()))


def test_50_000_traces(recorded: Recorded) -> None:
    """However many requests come and go, no more is kept of them than of the first few thousand."""
    blocks = []
    for _ in range(10):
        for number in range(5_000):
            request = recorded.request()
            if number % 5 == 0:
                recorded.sql.start_span("SELECT", recorded.task(request)).end()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert max(blocks) - blocks[0] < 1_000
    assert recorded.is_empty_but(200)


def test_what_the_worst_take(recorded: Recorded) -> None:
    """It takes less than 30 MB, whatever comes: names, values, messages and stack traces are all far too long."""
    long = {f"{number:02}{'k' * 300}": "v" * 2_000 for number in range(30)}
    tracemalloc.start()
    for _ in range(_recorder.QUIET):
        recorded.http.start_span("q" * 500, attributes=long).end()
    for _ in range(200):
        request = recorded.request("r" * 500)
        for _ in range(_recorder.SPANS // 5):
            task = recorded.tasks.start_span("t" * 500, request, attributes=long)
            task.set_status(StatusCode.ERROR, "m" * 5_000)
            task.add_event("exception", {"exception.stacktrace": "s" * 5_000})
            task.end()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(recorded.recorder.cards()) == 200
    assert taken < 30_000_000


def test_from_many_threads() -> None:
    """Requests of many threads, with garbage collections in between, leave nothing behind but what is kept."""
    recorded = Recorded(keep=5)

    def work() -> None:
        for _ in range(200):
            recorded.sql.start_span("SELECT", recorded.task(recorded.request())).end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorded.recorder.totals["done"] == 1_600
    assert recorded.recorder.totals["missed"] == 0
    assert len(recorded.recorder.cards()) == 5
    assert recorded.is_empty_but(5)


def test_an_eviction_in_the_middle(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that another thread evicts while a span of it starts leaves no span behind."""
    task = recorded.task(recorded.request())
    card = recorded.card()

    def evicting() -> float:
        recorded.recorder._evict_from(recorded.recorder._kept)
        return 0.0

    monkeypatch.setattr(_recorder, "perf_counter", evicting)
    recorded.sql.start_span("SELECT", task).end()
    assert card.evicted
    assert recorded.is_empty_but(0)


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    def fail(*_: object) -> Any:
        raise ValueError(name)

    with monkeypatch.context() as patch:
        patch.setattr(_recorder, name, fail)
        yield


@pytest.mark.parametrize("name", ["is_work", "copied"])
def test_a_failure_here_harms_nobody(recorded: Recorded, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The SDK does not guard its processors: what fails here goes no further, and is counted."""
    with broken(monkeypatch, name):
        recorded.task(recorded.request())
    assert recorded.recorder.totals["missed"] > 0
    recorded.task(recorded.request())
    assert recorded.names()[0] == ["background_task notify"]


def test_spans_that_nobody_knows(recorded: Recorded) -> None:
    """A span that began before the page is no concern of it, but for the total if it is a task's."""
    late = TracerProvider(shutdown_on_exit=False)
    task, other = late.get_tracer("traced_tasks").start_span("t"), late.get_tracer("sql").start_span("s")
    late.add_span_processor(recorded.recorder)
    task.end()
    other.end()
    assert recorded.recorder.totals == {"done": 1}
    assert recorded.recorder.cards() == []


def test_a_task_that_waits_keeps_its_request(recorded: Recorded) -> None:
    """The request of a task that waits is a card before there is a span, and one that is unknown is none."""
    span = recorded.http.start_span("POST /slow")
    context = span.get_span_context()
    assert recorded.recorder.of(1, 2) is None
    card = recorded.recorder.of(context.span_id, context.trace_id)
    assert card is not None
    assert card is recorded.recorder.of(1, context.trace_id)
    assert recorded.recorder.cards() == [card]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_begins_anew(recorded: Recorded) -> None:
    """A worker that is forked off has none of its parent's requests."""
    recorded.task(recorded.request())
    child = os.fork()
    if not child:
        os._exit(len(recorded.recorder.cards()) + len(recorded.recorder.totals))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(recorded.recorder.cards()) == 1


def test_a_page_that_is_gone_takes_nothing(recorded: Recorded) -> None:
    """An application that is made anew, for each test for example, leaves no page behind."""
    gone = weakref.ref(recorded.recorder)
    del recorded.recorder, recorded.provider, recorded.http, recorded.tasks, recorded.sql
    gc.collect()
    assert gone() is None


def test_a_span_without_a_scope(recorded: Recorded) -> None:
    """A span that somebody made by hand has no scope, and is no task."""
    assert not _recorder.is_work(SimpleNamespace(instrumentation_scope=None, kind=SpanKind.INTERNAL))  # type: ignore[arg-type]
    assert isinstance(recorded.recorder, SpanProcessor)


def test_many_open_requests_before_one_that_is_kept(recorded: Recorded) -> None:
    """Behind requests that stay open, as event streams do, one with a task is not given up while it is kept."""
    opened = [recorded.http.start_span("GET /events") for _ in range(32)]
    request = recorded.request()
    running = recorded.tasks.start_span("background_task notify", request)
    for _ in range(1000):
        recorded.request("GET /")
    running.end()
    recorded.task(request, "audit")
    assert recorded.names() == [["background_task notify", "background_task audit"]]
    assert all(isinstance(span, Ended) for span in recorded.card().spans.values())
    assert recorded.recorder._size == 2
    assert not recorded.recorder.totals["evicted"]
    assert len(opened) == 32


def test_a_request_that_a_handler_makes_of_its_own_process() -> None:
    """A request from the same process, by HTTP, is a card of its own, with its own task."""
    recorded = Recorded()
    outer = recorded.http.start_span("POST /outer", kind=SpanKind.SERVER)
    call = recorded.http.start_span("POST", trace.set_span_in_context(outer), kind=SpanKind.CLIENT)
    said = call.get_span_context()
    caller = NonRecordingSpan(SpanContext(said.trace_id, said.span_id, is_remote=True, trace_flags=said.trace_flags))
    inner = recorded.http.start_span("POST /inner", trace.set_span_in_context(caller), kind=SpanKind.SERVER)
    recorded.task(trace.set_span_in_context(inner), "of the inner one")
    for span in inner, call, outer:
        span.end()
    recorded.task(trace.set_span_in_context(outer), "of the outer one")
    assert recorded.names() == [["background_task of the inner one"], ["background_task of the outer one"]]
