"""Where a task's span belongs, and what its task finds in the OpenTelemetry context."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from httpx import AsyncClient
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from tests.conftest import Spans, is_child
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks._options import PropagationStyle

KEY = context.create_key("tenant")
STYLES: list[PropagationStyle] = ["child", "link", "none"]


def links_to(span: ReadableSpan, other: ReadableSpan) -> bool:
    return [link.context for link in span.links] == [other.context]


async def test_child(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """`child`: an internal span in the trace of the span that was current at `add_task`."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        with trace.get_tracer("mine").start_as_current_span("step"):
            tasks.add_task(print)

    await client.get("/")

    span = spans["background_task print"]
    assert is_child(span, spans["step"])
    assert span.kind is SpanKind.INTERNAL
    assert not span.links


async def test_link(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """`link`: the consumer span at the root of a trace of its own, linked to the span that was current."""

    @app.get("/")
    async def handler(
        tasks: Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))],
    ) -> None:
        with trace.get_tracer("mine").start_as_current_span("step"):
            tasks.add_task(print)

    await client.get("/")

    span = spans["background_task print"]
    assert span.parent is None
    assert span.context.trace_id != spans["step"].context.trace_id
    assert links_to(span, spans["step"])
    assert span.kind is SpanKind.CONSUMER


async def test_none(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """`none`: the consumer span at the root of a trace of its own, without a link."""

    @app.get("/")
    async def handler(
        tasks: Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="none"))],
    ) -> None:
        tasks.add_task(print)

    await client.get("/")

    span = spans["background_task print"]
    assert span.parent is None
    assert span.context.trace_id != spans["GET /"].context.trace_id
    assert not span.links
    assert span.kind is SpanKind.CONSUMER


@pytest.mark.parametrize("style", STYLES)
async def test_without_a_current_span(spans: Spans, style: PropagationStyle) -> None:
    """With no span to belong to, every style makes a root without links."""
    tasks = TracedBackgroundTasks()
    tasks.with_options(propagation_style=style).add_task(print)

    await tasks()

    (span,) = spans()
    assert span.parent is None
    assert [start.links for start in spans.starts] == [[]]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sync_handler", [False, True])
@pytest.mark.parametrize("sync_task", [False, True])
async def test_the_context_of_add_task(
    app: FastAPI,
    client: AsyncClient,
    spans: Spans,
    style: PropagationStyle,
    sync_handler: bool,
    sync_task: bool,
) -> None:
    """Baggage and every other value that was current at `add_task` is there in the task, in all styles."""
    seen: list[Any] = []

    def sync_look() -> None:
        seen.append((baggage.get_baggage("user"), context.get_value(KEY), trace.get_current_span()))

    async def async_look() -> None:
        sync_look()

    def queue(tasks: TracedBackgroundTasks) -> None:
        token = context.attach(context.set_value(KEY, "acme", baggage.set_baggage("user", "42")))
        tasks.with_options(propagation_style=style).add_task(sync_look if sync_task else async_look)
        context.detach(token)

    if sync_handler:

        @app.get("/")
        def handler(tasks: TracedBackgroundTasks) -> None:
            queue(tasks)
    else:

        @app.get("/")
        async def async_handler(tasks: TracedBackgroundTasks) -> None:
            queue(tasks)

    await client.get("/")

    ((user, tenant, current),) = seen
    (span,) = spans.tasks()
    assert (user, tenant) == ("42", "acme")
    assert current.get_span_context() == span.context


async def test_each_task_has_its_own_context(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Two tasks of one queue run each in the context of its own `add_task`, and the server's is back after them."""
    seen: list[object] = []

    def look() -> None:
        seen.append(baggage.get_baggage("item"))

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        for item in ("one", "two"):
            token = context.attach(baggage.set_baggage("item", item))
            tasks.add_task(look)
            context.detach(token)

    before = context.get_current()
    await client.get("/")

    assert seen == ["one", "two"]
    assert context.get_current() == before


@pytest.mark.parametrize("style", STYLES)
async def test_without_an_sdk(style: PropagationStyle) -> None:
    """Without an SDK, what a task calls belongs to the caller's remote trace only in the style `child`."""
    seen: list[int] = []
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    token = context.attach(propagate.extract(carrier))
    tasks = TracedBackgroundTasks()
    tasks.with_options(propagation_style=style).add_task(
        lambda: seen.append(trace.get_current_span().get_span_context().trace_id)
    )
    context.detach(token)

    await tasks()

    assert seen == [0x0AF7651916CD43DD8448EB211C80319C if style == "child" else 0]


async def test_a_traced_task_captures_where_it_is_made(spans: Spans) -> None:
    """`TracedBackgroundTask` belongs to the span that was current when it was made."""
    with trace.get_tracer("mine").start_as_current_span("step"):
        task = TracedBackgroundTask(print)

    await task()

    assert is_child(spans["background_task print"], spans["step"])


async def test_a_remote_parent(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A task that was added in an extracted context belongs to the remote span."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        token = context.attach(propagate.extract(carrier))
        tasks.add_task(print)
        context.detach(token)

    await client.get("/")

    span = spans["background_task print"]
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
