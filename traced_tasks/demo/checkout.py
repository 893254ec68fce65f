"""A checkout that writes to its customer after it has answered, in three ways."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import httpx
from fastapi import BackgroundTasks, FastAPI
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.demo import app as apps


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
    async def checkout(
        tasks: Annotated[
            TracedBackgroundTasks,
            TaskTracing(propagation_style="link"),
        ],
    ) -> dict[str, str]:
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
    handler: Callable[[FastAPI, httpx.AsyncClient], None],
    mail_url: str,
    provider: TracerProvider,
    meter_provider: MeterProvider,
) -> FastAPI:
    """Return the checkout app, whose spans all go to `provider`.

    Args:
        handler: `plain`, `traced` or `linked`.
        mail_url: Where the mail server is.
        provider: The provider of the request's, the tasks' and the HTTP client's spans.
        meter_provider: The provider of the requests' and the tasks' metrics.
    """
    http = create_client(mail_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with http:
            # The first call of a process imports a good deal, which would delay whatever happens at the same time.
            await http.get("/")
            HTTPXClientInstrumentor.instrument_client(http, tracer_provider=provider)
            yield

    link = TaskTracing(propagation_style="link")
    app = apps.create_app(provider, link, lifespan=lifespan, meter_provider=meter_provider)
    handler(app, http)
    return app


def create_client(mail_url: str) -> httpx.AsyncClient:
    """Return a client of the mail server. It makes no spans yet.

    Args:
        mail_url: Where the mail server is.
    """
    # Of certificates, which HTTP has no use for, a client would first load all there are: half a second.
    # And on a busy machine the first call takes longer than the 5 s after which it would give up.
    return httpx.AsyncClient(base_url=mail_url, trust_env=False, verify=False, timeout=30)


def create_mail_server() -> Starlette:
    """Return the slow server that the background task calls. It makes no spans."""
    return Starlette(routes=[Route("/mail", mail)])
