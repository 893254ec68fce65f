"""What can be chosen, and what is refused."""

import gc
import warnings
import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Annotated, Any, get_type_hints

import anyio
import pytest
from fastapi import Depends, FastAPI
from httpx import AsyncClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from pydantic import ValidationError

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks import _background as traced_background
from traced_tasks._options import TaskOptionsDict


def link(number: int) -> Link:
    return Link(SpanContext(number, number, is_remote=True, trace_flags=TraceFlags(1)))


async def test_a_routes_options(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A `TaskTracing` with everything set is a dependency, and its values are those of the span."""
    own = Spans()
    tracing = TaskTracing(
        span_name="send receipt",
        span_kind=SpanKind.PRODUCER,
        attributes={"tier": "gold", "items": [1, 2]},
        links=[link(1)],
        tracer_provider=own.provider,
    )

    @app.get("/")
    async def handler(tasks: Annotated[TracedBackgroundTasks, Depends(tracing)]) -> None:
        tasks.add_task(print)

    await client.get("/")

    assert spans.tasks() == []
    span = own["send receipt"]
    assert span.kind is SpanKind.PRODUCER
    assert span.attributes is not None
    assert span.attributes["tier"] == "gold"
    assert span.attributes["items"] == (1, 2)
    assert [each.context.trace_id for each in span.links] == [1]


async def test_options_of_one_task(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """`with_options` merges attributes, appends links, replaces the rest, for its own tasks and no others."""
    tracing = TaskTracing(attributes={"tier": "gold", "shop": "north"}, links=[link(1)], span_name="route's")

    @app.get("/")
    async def handler(tasks: Annotated[TracedBackgroundTasks, Depends(tracing)]) -> None:
        receipts = tasks.with_options(span_name="receipt", attributes={"tier": "silver"}, links=[link(2)])
        receipts.add_task(print)
        tasks.add_task(print)
        receipts.with_options(span_name=None).add_task(print)

    await client.get("/")

    first, second, third = spans.tasks()
    assert [span.name for span in (first, second, third)] == ["receipt", "route's", "background_task print"]
    tiers = [(span.attributes or {})["tier"] for span in (first, second, third)]
    assert tiers == ["silver", "gold", "silver"]
    assert {(span.attributes or {})["shop"] for span in (first, second, third)} == {"north"}
    assert [[each.context.trace_id for each in span.links] for span in (first, second, third)] == [[1, 2], [1], [1, 2]]


async def test_the_captured_links_come_first(spans: Spans) -> None:
    """With `link`, the link to the captured span stands before the user's links."""
    from opentelemetry import trace

    with trace.get_tracer("mine").start_as_current_span("step") as step:
        tasks = TracedBackgroundTasks()
        tasks.with_options(propagation_style="link", links=[link(1)]).add_task(print)

    await tasks()

    contexts = [each.context.trace_id for each in spans["background_task print"].links]
    assert contexts == [step.get_span_context().trace_id, 1]


async def test_a_users_attribute_replaces_ours(spans: Spans) -> None:
    """Who sets an attribute that is always there has the last word."""
    tasks = TracedBackgroundTasks()
    tasks.with_options(attributes={"code.function.name": "mine"}).add_task(print)

    await tasks()

    (span,) = spans()
    assert (span.attributes or {})["code.function.name"] == "mine"


async def test_a_view_of_a_subclass(spans: Spans) -> None:
    """`with_options` of a user's subclass is of that class and sees its attributes."""

    class Audited(traced_background.TracedBackgroundTasks):
        def __init__(self, log: list[str]) -> None:
            super().__init__()
            self.log = log

        def add_task(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            self.log.append(func.__name__)
            super().add_task(func, *args, **kwargs)

    log: list[str] = []
    tasks = Audited(log)
    tasks.with_options(span_name="mine").add_task(print)

    await tasks()

    assert log == ["print"]
    assert [span.name for span in spans()] == ["mine"]


def test_equal_options_are_equal_and_hash_alike() -> None:
    """Two `TaskTracing` with the same options, attributes and links stand for each other as dictionary keys."""
    shared = link(1)

    def tracing() -> TaskTracing:
        return TaskTracing(attributes={"tier": "gold", "items": [1, 2]}, links=[shared])

    assert tracing() == tracing()
    assert hash(tracing()) == hash(tracing())
    assert tracing() != TaskTracing()


def test_options_are_frozen() -> None:
    """Options cannot be changed, neither by assignment nor through the mapping they were made from."""
    attributes = {"tier": "gold"}
    tracing = TaskTracing(attributes=attributes)

    attributes["tier"] = "silver"

    assert tracing.attributes == {"tier": "gold"}
    with pytest.raises(ValidationError):
        tracing.span_name = "other"  # type: ignore[misc]


def test_the_keywords_of_with_options_are_the_options() -> None:
    """Every option of `TaskTracing` is a keyword of `with_options`, of the same type."""
    hints = get_type_hints(TaskTracing)

    assert get_type_hints(TaskOptionsDict) == {name: hints[name] for name in TaskTracing.model_fields}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"propagation_style": "links"}, "propagation_style"),
    ({"span_nam": "x"}, "span_nam"),
    ({"span_name": 1}, "span_name"),
    ({"span_kind": "CONSUMER"}, "span_kind"),
    ({"span_kind": 4}, "span_kind"),
    ({"attributes": {"user": object()}}, "attributes.user"),
    ({"attributes": {"user": {"name": [object()]}}}, "attributes.user"),
    ({"attributes": {"user": {1: "x"}}}, "attributes.user"),
    ({"attributes": {1: "x"}}, "attributes.1"),
    ({"attributes": ["x"]}, "attributes"),
    ({"attributes": None}, "attributes"),
    ({"links": [SpanContext(1, 1, is_remote=True)]}, "links.0"),
    ({"links": None}, "links"),
    ({"record_exception": "no"}, "record_exception"),
    ({"tracer_provider": "console"}, "tracer_provider"),
]


@pytest.mark.parametrize(("options", "place"), WRONG)
def test_wrong_options(options: dict[str, Any], place: str) -> None:
    """A wrong option is refused where it is written, with its name, by `TaskTracing` and by `with_options`."""
    with pytest.raises(ValidationError, match=rf"(?m)^{place}\b"):
        TaskTracing(**options)
    with pytest.raises(ValidationError, match=rf"(?m)^{place}\b"):
        TracedBackgroundTasks().with_options(**options)


@pytest.mark.parametrize(
    "attributes",
    [
        {"all": ["str", True, 1, 0.5, b"bytes", None], "nested": {"a": {"b": (1,)}}},
        MappingProxyType({"tier": "gold"}),
        {},
    ],
)
def test_right_attributes(attributes: dict[str, Any]) -> None:
    """Whatever OpenTelemetry takes as an attribute is taken."""
    assert TaskTracing(attributes=attributes).attributes == attributes


async def notify() -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "not None"),
        ("notify", "not 'notify'"),
        (42, "not 42"),
        (..., "not Ellipsis"),
    ],
)
def test_what_is_no_function(given: Any, message: str) -> None:
    """What cannot be called is refused at once, with what was given and what is expected."""
    tasks = TracedBackgroundTasks()

    for refuse in (tasks.add_task, TracedBackgroundTask, tasks.with_options().add_task):
        with pytest.raises(TypeError, match=rf"^add_task takes a function and its arguments, .* {message}$"):
            refuse(given)

    assert tasks.tasks == []


def test_a_coroutine_by_mistake() -> None:
    """A called `async def` is refused with the right way to write it, and closed, so that Python does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"add_task\(notify, 42\), not a coroutine, add_task\(notify\(42\)\)$"):
            TracedBackgroundTasks().add_task(notify())  # type: ignore[arg-type]


async def test_a_refusal_loses_nothing_else(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A handler that survives its mistake keeps the tasks around it."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        with pytest.raises(TypeError):
            tasks.add_task("notify")  # type: ignore[arg-type]
        tasks.add_task(notify)

    await client.get("/")

    assert len(spans.tasks()) == 2


def test_tracing_that_is_none() -> None:
    """A queue by hand refuses anything but a `TaskTracing`."""
    with pytest.raises(TypeError, match="tracing is a TaskTracing, not 'link'"):
        TracedBackgroundTasks(tracing="link")  # type: ignore[arg-type]


async def test_providers_are_told_apart_by_identity() -> None:
    """Providers that are equal, not hashable, or false, have each their own spans."""

    class Odd(TracerProvider):
        def __eq__(self, other: object) -> bool:
            return True

        def __bool__(self) -> bool:
            return False

    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    for exporter in exporters:
        provider = Odd()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        for _ in range(2):
            tasks = TracedBackgroundTasks(tracing=TaskTracing(tracer_provider=provider))
            tasks.add_task(print)
            await tasks()

    assert [len(exporter.get_finished_spans()) for exporter in exporters] == [2, 2]


async def test_a_provider_is_forgotten() -> None:
    """A provider that nobody else holds is not kept alive."""
    provider = TracerProvider()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(tracer_provider=provider))
    tasks.add_task(anyio.sleep, 0)  # a thread might hold on to its last context for a moment
    await tasks()
    alive = weakref.ref(provider)

    provider.shutdown()
    del provider, tasks
    gc.collect()

    assert alive() is None


def test_options_of_ones_own() -> None:
    """A subclass of `TaskTracing` with a required field keeps it through `with_options`."""

    class TeamTracing(TaskTracing, frozen=True):
        team: str

    queue = TracedBackgroundTasks(tracing=TeamTracing(team="shop", attributes={"a": 1}))

    view = queue.with_options(attributes={"b": 2})

    assert view.tracing == TeamTracing(team="shop", attributes={"a": 1, "b": 2})


async def test_options_that_are_equal_but_not_the_same(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Two parameters whose attributes are only equal by `==` have each their own."""
    seen = []

    @app.get("/")
    async def handler(
        first: Annotated[TracedBackgroundTasks, TaskTracing(attributes={"retry": 1, "a": 0})],
        second: Annotated[TracedBackgroundTasks, TaskTracing(attributes={"retry": True, "a": 0})],
    ) -> None:
        first.add_task(print)
        second.add_task(print)

    await client.get("/")

    for span in spans.tasks():
        assert span.attributes is not None
        seen.append(span.attributes["retry"])
    assert [(value, type(value)) for value in seen] == [(1, int), (True, bool)]
    assert TaskTracing(attributes={"a": 1, "b": 2}) == TaskTracing(attributes={"b": 2, "a": 1})


def test_a_positional_option() -> None:
    """An option that is not given by its name is refused with the way to write it."""
    untyped: Any = TaskTracing  # a type checker refuses it too
    with pytest.raises(
        TypeError, match=r"the options are keywords, TaskTracing\(propagation_style='link'\), not 'link'"
    ):
        untyped("link")


def test_nothing_of_fastapis_is_an_option() -> None:
    """`TaskTracing` is a dependency of FastAPI's, whose fields are none of its options."""
    assert set(TaskTracing.model_fields) == set(get_type_hints(TaskOptionsDict))
    for name in vars(Depends()):
        with pytest.raises(ValidationError, match=name):
            TaskTracing.model_validate({name: None})
