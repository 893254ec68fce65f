"""One span a task, whoever else looks: FastAPI's own telemetry, FastAPIInstrumentor, both, neither."""

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.background import BackgroundTask
from starlette.types import ASGIApp

from tests.conftest import HAS_TELEMETRY, Spans, is_child, scope
from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks

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


class Transaction:
    """What New Relic puts in the place of `BackgroundTask.__call__`: an object that is no function."""

    def __init__(self, call: Callable[[BackgroundTask], Coroutine[Any, Any, None]], names: list[str]) -> None:
        self.call = call
        self.names = names

    def __get__(self, task: BackgroundTask, owner: type) -> Any:
        return self if task is None else partial(self, task)

    async def __call__(self, task: BackgroundTask) -> None:
        self.names.append(task.func.__name__)
        await self.call(task)


async def test_a_transaction_around_a_task(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a neighbour that makes no span has put around each task stays there, inside the task's span."""
    names: list[str] = []
    monkeypatch.setattr(BackgroundTask, "__call__", Transaction(BackgroundTask.__call__, names))
    ran: list[int] = []

    def notify() -> None:
        ran.append(1)

    async def async_notify() -> None:
        ran.append(2)

    await TracedBackgroundTasks([TracedBackgroundTask(notify), TracedBackgroundTask(async_notify)])()

    assert ran == [1, 2]
    assert names == ["notify", "async_notify"]
    assert [span.name for span in spans.tasks()] == ["background_task notify", "background_task async_notify"]
