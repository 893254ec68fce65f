"""By hand, with Starlette alone."""

from collections.abc import Callable

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks import background as traced_background


async def notify(user_id: int, *, ran: list[int]) -> None:
    ran.append(user_id)


async def test_a_task(connect: Callable[[ASGIApp], httpx.AsyncClient], spans: Spans) -> None:
    """`TracedBackgroundTask` is Starlette's `BackgroundTask`, with a span."""
    ran: list[int] = []

    async def checkout(request: Request) -> JSONResponse:
        task = TracedBackgroundTask(notify, 42, ran=ran)
        assert (task.func, task.args, task.kwargs, task.is_async) == (notify, (42,), {"ran": ran}, True)
        return JSONResponse({}, background=task)

    await connect(Starlette(routes=[Route("/", checkout)])).get("/")

    assert ran == [42]
    assert [span.name for span in spans.tasks()] == ["background_task notify"]


async def test_a_queue(connect: Callable[[ASGIApp], httpx.AsyncClient], spans: Spans) -> None:
    """`TracedBackgroundTasks` is Starlette's `BackgroundTasks`, with a span a task, plain ones included."""
    ran: list[int] = []

    async def checkout(request: Request) -> JSONResponse:
        tasks = TracedBackgroundTasks(
            [BackgroundTask(notify, 1, ran=ran), TracedBackgroundTask(notify, 2, ran=ran)],
            tracing=TaskTracing(span_name="queue's"),
        )
        tasks.add_task(notify, 3, ran=ran)
        return JSONResponse({}, background=tasks)

    await connect(Starlette(routes=[Route("/", checkout)])).get("/")

    assert ran == [1, 2, 3]
    assert [span.name for span in spans.tasks()] == ["queue's", "background_task notify", "queue's"]


def test_the_alias_makes_a_queue() -> None:
    """The public name can be called like the class that type checkers see in it."""
    assert type(TracedBackgroundTasks()) is traced_background.TracedBackgroundTasks


async def test_without_an_sdk(connect: Callable[[ASGIApp], httpx.AsyncClient]) -> None:
    """Without an SDK a task just runs."""
    ran: list[int] = []

    async def checkout(request: Request) -> JSONResponse:
        return JSONResponse({}, background=TracedBackgroundTask(notify, 42, ran=ran))

    await connect(Starlette(routes=[Route("/", checkout)])).get("/")

    assert ran == [42]
