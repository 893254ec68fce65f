"""Random queues against a simple model of what must have run, what must be raised, and which spans must exist."""

from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks

from tests.conftest import Spans, is_child
from traced_tasks import TracedBackgroundTasks
from traced_tasks._options import OnError, PropagationStyle

Outcome = Literal["ok", "fails", "cancelled", "adds"]


@dataclass
class Work:
    """One task: what it does, how it is queued, and what it may add to the running queue."""

    outcome: Outcome
    is_async: bool
    plain: bool
    style: PropagationStyle
    on_error: OnError
    number: int = -1
    added: list["Work"] = field(default_factory=list)


work = st.builds(
    Work,
    outcome=st.sampled_from(["ok", "ok", "fails", "cancelled", "adds"]),
    is_async=st.booleans(),
    plain=st.booleans(),
    style=st.sampled_from(["child", "link", "none"]),
    on_error=st.sampled_from(["stop", "continue"]),
    added=st.lists(
        st.builds(
            Work,
            outcome=st.sampled_from(["ok", "fails"]),
            is_async=st.booleans(),
            plain=st.just(False),
            style=st.just("child"),
            on_error=st.sampled_from(["stop", "continue"]),
        ),
        max_size=2,
    ),
)


class Broken(Exception):  # noqa: N818
    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Model:
    """What a queue must do, written without spans, contexts or classes."""

    ran: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    cancelled: int | None = None
    stopped: bool = False

    @classmethod
    def of(cls, queue: list[Work]) -> "Model":
        model = cls()
        pending = list(queue)
        while pending:
            each = pending.pop(0)
            model.ran.append(each.number)
            if each.outcome == "adds":
                pending += each.added
            elif each.outcome == "cancelled":
                model.cancelled = each.number
                break
            elif each.outcome == "fails":
                model.failed.append(each.number)
                # A plain task has the options of the queue it is in.
                if each.plain or each.on_error == "stop":
                    model.stopped = True
                    break
        model.skipped = [each.number for each in pending]
        return model


class Run:
    """The queue itself, in a request's span, with each task's own span and baggage current at its `add_task`."""

    def __init__(self, queue: list[Work]) -> None:
        self.tasks = TracedBackgroundTasks()
        self.scope = anyio.CancelScope()
        self.ran: list[int] = []
        self.seen: dict[int, Any] = {}
        self.tracer = trace.get_tracer("mine")
        for each in queue:
            self.add(each)

    def add(self, each: Work) -> None:
        with self.tracer.start_as_current_span(f"add {each.number}"):
            token = context.attach(baggage.set_baggage("number", each.number))
            function = self.async_run if each.is_async or each.outcome == "cancelled" else self.sync_run
            if each.plain:
                plain = StarletteBackgroundTasks([BackgroundTask(function, each)])
                self.tasks.tasks += TracedBackgroundTasks(plain.tasks).tasks
            else:
                options = {"propagation_style": each.style, "on_error": each.on_error}
                self.tasks.with_options(**options, span_name=f"task {each.number}").add_task(function, each)  # type: ignore[arg-type]
            context.detach(token)

    def sync_run(self, each: Work) -> None:
        self.ran.append(each.number)
        self.seen[each.number] = (baggage.get_baggage("number"), trace.get_current_span().get_span_context())
        if each.outcome == "fails":
            raise Broken(each.number)
        if each.outcome == "adds":
            for more in each.added:
                self.add(more)

    async def async_run(self, each: Work) -> None:
        await anyio.lowlevel.checkpoint()
        self.sync_run(each)
        if each.outcome == "cancelled":
            self.scope.cancel()
            await anyio.sleep_forever()

    async def __call__(self) -> list[int]:
        """Run the queue, and return the tasks whose failures were raised."""
        raised: list[int] = []
        with self.scope:
            try:
                await self.tasks()
            except* Broken as group:
                raised = [error.number for error in leaves(group)]
        return raised


def leaves(error: BaseException) -> list[Any]:
    return (
        [leaf for each in error.exceptions for leaf in leaves(each)]
        if isinstance(error, BaseExceptionGroup)
        else [error]
    )


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(queue=st.lists(work, max_size=7))
async def test_a_random_queue(spans: Spans, queue: list[Work]) -> None:
    """Whatever the queue: what ran, what was raised and which spans exist, and where, is what the model says."""
    spans.exporter.clear()
    numbers = iter(range(1000))
    for each in queue:
        each.number = next(numbers)
        for more in each.added:
            more.number = next(numbers)
    model = Model.of(queue)
    run = Run(queue)

    raised = await run()

    everything = {each.number: each for one in queue for each in (one, *one.added)}
    assert run.ran == model.ran
    assert raised == ([] if model.cancelled is not None else model.failed)
    named = {span.name: span for span in spans()}
    recorded = spans.tasks()
    assert len(recorded) == len(model.ran) + len(model.skipped)
    for number in model.ran:
        expected_error = dict.fromkeys(model.failed, "tests.behaviour.test_properties.Broken").get(number)
        if number == model.cancelled:
            expected_error = "cancelled"
        check(run, named, recorded, everything[number], expected_error)
    skipped = [span for span in recorded if (span.attributes or {}).get("error.type") == "skipped"]
    assert len(skipped) == len(model.skipped)


def check(run: Run, named: Any, recorded: Any, each: Work, error: str | None) -> None:
    seen_baggage, own = run.seen[each.number]
    (span,) = [span for span in recorded if span.context.span_id == own.span_id]
    origin = named[f"add {each.number}"]
    assert seen_baggage == each.number
    style = "child" if each.plain else each.style
    if style == "child":
        assert is_child(span, origin)
    else:
        assert span.parent is None
        assert [link.context for link in span.links] == ([origin.context] if style == "link" else [])
    recorded_error = (span.attributes or {}).get("error.type")
    if error == "cancelled":
        assert "Cancelled" in str(recorded_error)
    else:
        assert recorded_error == error
