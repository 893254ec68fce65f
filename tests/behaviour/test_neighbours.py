"""One span a task, whoever else looks: FastAPI's own telemetry, FastAPIInstrumentor, both, neither."""

import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.background import BackgroundTask
from starlette.types import ASGIApp

from tests.conftest import HAS_TELEMETRY, Spans, is_child, scope
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks

CONTRIB = "opentelemetry.instrumentation.fastapi"


@pytest.fixture(params=["neither", "contrib", *(["fastapi", "both"] if HAS_TELEMETRY else [])])
def neighbour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def app(neighbour: str, spans: Spans) -> Iterator[FastAPI]:
    telemetry = neighbour in ("fastapi", "both")
    app = FastAPI(telemetry={"tracing": telemetry, "metrics": telemetry, "logs": telemetry})
    if neighbour in ("contrib", "both"):
        FastAPIInstrumentor.instrument_app(app)
        yield app
        FastAPIInstrumentor.uninstrument_app(app)
    else:
        yield app


async def test_one_span_a_task(
    app: FastAPI, connect: Callable[[ASGIApp], httpx.AsyncClient], spans: Spans, neighbour: str
) -> None:
    """Sync and async, traced and plain, from before and after the adoption: each task has one span around its work."""

    def before_adoption() -> None:
        trace.get_tracer("mine").start_span("work of before_adoption").end()

    async def traced() -> None:
        trace.get_tracer("mine").start_span("work of traced").end()

    def plain() -> None:
        trace.get_tracer("mine").start_span("work of plain").end()

    def dependency(tasks: BackgroundTasks) -> None:
        tasks.add_task(before_adoption)

    @app.get("/", dependencies=[Depends(dependency)])
    async def handler(tasks: TracedBackgroundTasks, others: BackgroundTasks) -> None:
        tasks.add_task(traced)
        others.add_task(plain)

    await connect(app).get("/")

    assert [span.name for span in spans.tasks()] == [
        "background_task before_adoption",
        "background_task traced",
        "background_task plain",
    ]
    for task in spans.tasks():
        assert is_child(spans["work of" + task.name.removeprefix("background_task")], task)
    assert not [span.name for span in spans() if "ackground" in span.name and scope(span) != "traced_tasks"]
    requests = [span for span in spans() if span.name == "GET /"]
    assert len(requests) == (0 if neighbour == "neither" else 1)
    for request in requests:
        assert {span.context.trace_id for span in spans.tasks()} == {request.context.trace_id}


async def test_a_task_by_hand(app: FastAPI, connect: Callable[[ASGIApp], httpx.AsyncClient], spans: Spans) -> None:
    """A `TracedBackgroundTask` and a queue by hand as `Response(background=...)` have one span a task as well."""
    from fastapi.responses import JSONResponse

    @app.get("/task")
    async def with_task() -> JSONResponse:
        return JSONResponse({}, background=TracedBackgroundTask(print))

    @app.get("/queue")
    async def with_queue() -> JSONResponse:
        tasks = TracedBackgroundTasks([TracedBackgroundTask(print)])
        tasks.add_task(print)
        return JSONResponse({}, background=tasks)

    client = connect(app)
    await client.get("/task")
    await client.get("/queue")

    assert [span.name for span in spans.tasks()] == ["background_task print"] * 3
    assert not [span.name for span in spans() if "ackground" in span.name and scope(span) != "traced_tasks"]


class Patch:
    """What is put in the place of `BackgroundTask.__call__` by wrapt: an object that is no function."""

    def __init__(self, call: Callable[[BackgroundTask], Coroutine[Any, Any, None]], names: list[str]) -> None:
        self.call = call
        self.names = names

    def __get__(self, task: BackgroundTask, owner: type) -> Any:
        return self if task is None else partial(self, task)

    async def __call__(self, task: BackgroundTask) -> None:
        self.names.append(task.func.__name__)
        await self.call(task)


class TransactionPatch(Patch):
    """The same, by New Relic."""

    __module__ = "newrelic.common.object_wrapper"


class Agent(ModuleType):
    """New Relic's public API, as far as it is about this."""

    def __init__(self, inside: bool) -> None:
        self.inside = inside
        self.names: list[str] = []

    def current_transaction(self, active_only: bool) -> object:
        return self if self.inside else None

    def BackgroundTaskWrapper(self, func: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802
        self.names.append(f"transaction {func.__name__}")
        return func

    def FunctionTraceWrapper(self, func: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802
        self.names.append(f"trace {func.__name__}")
        return func


@pytest.mark.parametrize("inside", [False, True])
async def test_a_transaction_around_a_task(spans: Spans, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """The transaction that New Relic has around each task stays there, inside the task's span."""
    agent = Agent(inside)
    monkeypatch.setitem(sys.modules, "newrelic", ModuleType("newrelic"))
    monkeypatch.setitem(sys.modules, "newrelic.agent", agent)
    monkeypatch.setattr(BackgroundTask, "__call__", TransactionPatch(BackgroundTask.__call__, []))
    ran: list[int] = []

    def notify() -> None:
        ran.append(1)

    async def async_notify() -> None:
        ran.append(2)

    await TracedBackgroundTasks([TracedBackgroundTask(notify), TracedBackgroundTask(async_notify)])()

    assert ran == [1, 2]
    kind = "trace" if inside else "transaction"
    assert agent.names == [f"{kind} notify", f"{kind} async_notify"]
    assert [span.name for span in spans.tasks()] == ["background_task notify", "background_task async_notify"]


async def test_a_transaction_that_cannot_be_made(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without New Relic's public API the task runs without a transaction."""
    monkeypatch.setitem(sys.modules, "newrelic.agent", None)
    monkeypatch.setattr(BackgroundTask, "__call__", TransactionPatch(BackgroundTask.__call__, []))

    await TracedBackgroundTasks([TracedBackgroundTask(print)])()

    (span,) = spans.tasks()
    assert span.status.is_ok


async def test_another_patch_of_a_task(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """What anybody else has put in the place of `BackgroundTask.__call__`, by wrapt too, makes no second span."""
    names: list[str] = []
    monkeypatch.setattr(BackgroundTask, "__call__", Patch(BackgroundTask.__call__, names))

    await TracedBackgroundTasks([TracedBackgroundTask(print), TracedBackgroundTask(anyio.sleep, 0)])()

    assert names == []
    assert [span.name for span in spans.tasks()] == ["background_task print", "background_task sleep"]


class OwnContext(ContextVarsRuntimeContext):
    """Keeps the current context in a way of its own, as ddtrace does: its tokens are none of `contextvars`."""

    def attach(self, context: Context) -> Any:
        return [super().attach(context)]

    def detach(self, token: Any) -> None:
        super().detach(*token)


@pytest.mark.parametrize("sync", [True, False])
async def test_another_keeper_of_the_context(spans: Spans, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    """Who else keeps the current context has it back after each task, one that fails as well."""
    monkeypatch.setattr("opentelemetry.context._RUNTIME_CONTEXT", OwnContext())

    def raise_it() -> None:
        raise ValueError

    async def async_raise_it() -> None:
        raise ValueError

    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
    tasks.add_task(raise_it if sync else async_raise_it)
    tasks.add_task(print)
    tasks.add_task(anyio.sleep, 0)
    with pytest.raises(ExceptionGroup):
        await tasks()

    assert not trace.get_current_span().get_span_context().is_valid
    assert [(span.parent, span.status.is_ok) for span in spans.tasks()] == [(None, False), (None, True), (None, True)]
