"""A few seconds of `python -m tests.load`."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.load.client import connect, serve
from tests.load.spans import Span, Spans, violations, violations_of_many

REQUESTS, ROUND, TASKS, CONNECTIONS = 600, 200, 10, 100


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_every_span_belongs_to_its_request(tmp_path: Path) -> None:
    """Under 100 connections at once no span and no baggage is lost, doubled or mixed up, and nothing stays."""
    with serve(tmp_path) as server:
        spans = Spans(server.spans)
        async with connect(server, CONNECTIONS) as client:
            states: list[dict[str, Any]] = []
            for start in range(0, REQUESTS, ROUND):
                requests = range(start, start + ROUND)
                await client.load(requests, TASKS)
                states.append(await client.get("/state"))
                assert violations(spans.new(), requests, TASKS) == {}

    after = states[-1]
    assert {state["tasks"] for state in states} == {0}
    # Not even one for each request, in one of the rounds at least: a connection may be slow to open.
    assert min(after["objects"] - before["objects"] for before, after in pairwise(states)) < ROUND
    assert after["background_task.duration"] == after["background_task.queue.duration"] == REQUESTS * TASKS
    assert after["background_task.active"] == 0
    assert "background_task.lost" not in after
    assert server.log.read_text() == ""


async def test_many_tasks_of_one_request(tmp_path: Path) -> None:
    """The spans of 5,000 tasks of one request are its children, and nothing stays."""
    with serve(tmp_path) as server:
        async with connect(server, 1) as client:
            await client.many(5_000)
            state = await client.get("/state")

        assert violations_of_many(Spans(server.spans).new(), 5_001) == {}
    assert state["tasks"] == 0


async def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """A span that is lost, doubled or of another request is found."""
    requests = range(4)
    with serve(tmp_path) as server:
        async with connect(server, 1) as client:
            await client.load(requests, 2)
            await client.get("/state")
        spans = Spans(server.spans).new()
    work = next(span for span in spans if span.name == "work")
    child = next(span for span in spans if span.name.startswith("background_task") and span.parent_id)
    link = next(span for span in spans if span.name.startswith("background_task") and span.links)

    def instead(span: Span, **changes: Any) -> list[Span]:
        return [span._replace(**changes) if each is span else each for each in spans]

    assert violations(spans, requests, 2) == {}
    assert violations([span for span in spans if span is not work], requests, 2) == {"work lost": 1}
    assert violations([*spans, link], requests, 2) == {"background_task doubled": 1}
    assert violations(instead(child, parent_id=1), requests, 2) == {"task below another span": 1}
    assert violations(instead(link, links=[[1, 1]]), requests, 2) == {"task linked to another span": 1}
    assert violations(instead(work, baggage=["0", "1"]), requests, 2) == {"baggage of another request": 1}
    assert violations(instead(work, task=7), requests, 2) == {"work lost": 1, "span of nothing": 1}
