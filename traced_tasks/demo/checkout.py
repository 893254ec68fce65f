"""A checkout that writes to its customer after it has answered: the app of the story, in three ways."""

import asyncio
import inspect
import textwrap
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from traced_tasks import TaskTracing, TracedBackgroundTasks

LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]


def plain(app: FastAPI, http: httpx.AsyncClient) -> None:
    @app.post("/checkout")
    async def checkout(tasks: BackgroundTasks) -> dict[str, str]:
        await charge()
        tasks.add_task(notify, http, order=42)
        return {"status": "paid"}


def traced(app: FastAPI, http: httpx.AsyncClient) -> None:
    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> dict[str, str]:
        await charge()
        tasks.add_task(notify, http, order=42)
        return {"status": "paid"}


def linked(app: FastAPI, http: httpx.AsyncClient) -> None:
    @app.post("/checkout")
    async def checkout(tasks: LinkedTasks) -> dict[str, str]:
        await charge()
        tasks.add_task(notify, http, order=42)
        return {"status": "paid"}


async def charge() -> None:
    await asyncio.sleep(0.15)


async def notify(http: httpx.AsyncClient, order: int) -> None:
    await http.get("/mail", params={"order": order})


async def mail(request: Request) -> PlainTextResponse:  # noqa: ARG001
    await asyncio.sleep(0.6)
    return PlainTextResponse("sent")


def create_app(
    handler: Callable[[FastAPI, httpx.AsyncClient], None], mail_url: str, provider: TracerProvider
) -> FastAPI:
    """Return the checkout app, whose spans all go to `provider`.

    Args:
        handler: `plain`, `traced` or `linked`.
        mail_url: Where the mail server is.
        provider: The provider of the request's, the tasks' and the HTTP client's spans.
    """
    http = httpx.AsyncClient(base_url=mail_url, trust_env=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with http:
            # The first call of a process imports a good deal, which would delay whatever happens at the same time.
            await http.get("/")
            HTTPXClientInstrumentor.instrument_client(http, tracer_provider=provider)
            yield

    app = FastAPI(
        lifespan=lifespan,
        telemetry={
            "tracer_provider": provider,
            # Only the span of the request, which is what the story is about (and what contrib's instrumentation shows).
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
    )
    handler(app, http)
    # An app of yours sets the global provider and needs none of this. The story leaves everything global alone.
    for tracing in TaskTracing(), TaskTracing(propagation_style="link"):
        app.dependency_overrides[tracing] = tracing.model_copy(update={"tracer_provider": provider})
    return app


def create_mail_server() -> Starlette:
    """Return the slow server that the background task calls. It makes no spans."""
    return Starlette(routes=[Route("/mail", mail)])


def code_of(handler: Callable[[FastAPI, httpx.AsyncClient], None]) -> list[str]:
    """Return the lines that a user writes for `handler`: the import, and the function of the route."""
    module = "fastapi" if handler is plain else "traced_tasks"
    name = "BackgroundTasks" if handler is plain else "TracedBackgroundTasks"
    function = textwrap.dedent("".join(inspect.getsourcelines(handler)[0][1:]))
    return [f"from {module} import {name}", "", *function.splitlines()]
