"""Server-sent events, which FastAPI has had since 0.135."""

from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from httpx import AsyncClient

from tests.conftest import Spans
from traced_tasks import TracedBackgroundTasks


@pytest.mark.parametrize("sync", [True, False])
async def test_server_sent_events(app: FastAPI, client: AsyncClient, spans: Spans, sync: bool) -> None:
    """A handler that yields events queues between them, and its tasks run behind the last."""
    order: list[str] = []

    @app.get("/sync", response_class=EventSourceResponse)
    def sync_events(tasks: TracedBackgroundTasks) -> Iterator[dict[str, int]]:
        yield {"number": 1}
        tasks.add_task(order.append, "task")
        yield {"number": 2}
        order.append("last event")

    @app.get("/async", response_class=EventSourceResponse)
    async def async_events(tasks: TracedBackgroundTasks) -> AsyncIterator[dict[str, int]]:
        for event in sync_events(tasks):
            yield event

    response = await client.get("/sync" if sync else "/async")

    assert [line for line in response.text.splitlines() if line] == ['data: {"number":1}', 'data: {"number":2}']
    assert order == ["last event", "task"]
    assert [span.name for span in spans.tasks()] == ["background_task list.append"]
    assert len({span.context.trace_id for span in spans()}) == 1
