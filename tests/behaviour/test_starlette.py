"""By hand, with Starlette alone."""

import asyncio
import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks import _background as traced_background


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


def sync(user_id: int, *, ran: list[int]) -> None:
    ran.append(user_id)


def marked(user_id: int, *, ran: list[int]) -> Coroutine[Any, Any, None]:
    return notify(user_id, ran=ran)


if mark := getattr(inspect, "markcoroutinefunction", None):
    mark(marked)
else:  # Python 3.11
    marked._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


@functools.wraps(notify)
def wrapper(user_id: int, *, ran: list[int]) -> None:
    sync(user_id, ran=ran)


@functools.wraps(sync)
async def async_wrapper(user_id: int, *, ran: list[int]) -> None:
    await notify(user_id, ran=ran)


@types.coroutine
def generator_based(user_id: int, *, ran: list[int]) -> Any:
    yield from notify(user_id, ran=ran).__await__()


async def async_generator(user_id: int, *, ran: list[int]) -> AsyncIterator[None]:
    yield None


class Mailer:
    async def send(self, user_id: int, *, ran: list[int]) -> None:
        await notify(user_id, ran=ran)

    async def __call__(self, user_id: int, *, ran: list[int]) -> None:
        await self.send(user_id, ran=ran)


@pytest.mark.parametrize(
    "func",
    [
        notify,
        sync,
        marked,
        wrapper,
        async_wrapper,
        generator_based,
        async_generator,
        functools.partial(notify),
        functools.partial(sync),
        Mailer().send,
        Mailer(),
        Mailer,
        lambda user_id, *, ran: notify(user_id, ran=ran),
        print,
        Mock(),
        AsyncMock(),
    ],
    ids=lambda func: getattr(func, "__name__", type(func).__name__),
)
def test_whether_it_is_awaited(func: Callable[..., Any]) -> None:
    """A task is awaited, or called in a thread, as Starlette's is."""
    queue = TracedBackgroundTasks()
    queue.add_task(func, 42, ran=[])

    assert [task.is_async for task in (*queue.tasks, TracedBackgroundTask(func, 42, ran=[]))] == [
        BackgroundTask(func, 42, ran=[]).is_async
    ] * 2


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
