"""Beside the telemetry that FastAPI itself has since 0.142."""

import pytest
from fastapi import FastAPI
from fastapi.telemetry import get_telemetry_data
from fastapi.telemetry._api import _REQUEST_TELEMETRY_KEY  # pyright: ignore[reportPrivateUsage]
from httpx import AsyncClient
from opentelemetry import context

from tests.conftest import Spans, is_child
from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks._options import PropagationStyle


async def test_the_parent_is_the_operation(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """With FastAPI's spans for operations, a task belongs to the endpoint that added it."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(print)

    await client.get("/")

    assert is_child(spans["background_task print"], spans["fastapi.endpoint"])


@pytest.mark.parametrize("attached", ["nothing", "an empty context"])
@pytest.mark.parametrize("style", ["child", "link", "none"])
async def test_telemetry_data(
    app: FastAPI, client: AsyncClient, spans: Spans, style: PropagationStyle, attached: str
) -> None:
    """`get_telemetry_data()` answers in a task, even if the handler attached a context that does not have it."""
    paths: list[str] = []

    def look() -> None:
        data = get_telemetry_data()
        assert data is not None
        assert data.request is not None
        paths.append(data.request.url.path)

    @app.get("/checkout")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        token = context.attach(context.get_current() if attached == "nothing" else context.Context())
        tasks.with_options(propagation_style=style).add_task(look)
        context.detach(token)

    await client.get("/checkout")

    assert paths == ["/checkout"]


async def test_telemetry_data_of_an_excluded_request(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A task of a request that FastAPI does not trace gets no data of the traced request in which it happens to run."""
    seen: list[object] = []
    # What FastAPI attaches for a request that `exclude` names, since a later version than the first with telemetry.
    token = context.attach(context.set_value(_REQUEST_TELEMETRY_KEY, None))
    task = TracedBackgroundTask(lambda: seen.append(get_telemetry_data()))
    context.detach(token)

    @app.get("/")
    async def run() -> None:
        assert get_telemetry_data() is not None
        await task()

    await client.get("/")

    assert seen == [None]
