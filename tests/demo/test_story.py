"""The story, told for real."""

import asyncio
import io
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console
from rich.status import Status
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from traced_tasks.demo import story
from traced_tasks.demo.interrupt import HeldInterrupt
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import Span, Spans

SIGNUP = ["send_mail", "charge_card", "update_crm", "write_audit"]


def tree(recording: story.Recording) -> list[str]:
    """The names of the spans, each behind those that are above it."""
    recorded = Spans(map(Span.of, recording.spans))

    def paths(span: Span, above: str) -> list[str]:
        path = f"{above}{span.name}"
        return [path, *(found for child in recorded.children(span) for found in paths(child, f"{path} > "))]

    return [found for root in recorded.roots() for found in paths(root, "")]


@pytest.fixture(scope="module")
def recordings() -> list[story.Recording]:
    said: list[str] = []
    with httpx.Client(trust_env=False) as client, story.checkout_story() as told:
        recordings = [story.record(chapter, client, said.append) for chapter in told.chapters]
    assert said == [
        "POST /checkout: waiting for the response",
        "POST /checkout: the response is here, waiting for the work behind it",
    ] * len(recordings)
    return recordings


@pytest.fixture(scope="module")
def lost() -> list[story.Recording]:
    with httpx.Client(trust_env=False) as client, story.lost_story() as told:
        return [story.record(chapter, client, lambda _: None) for chapter in told.chapters]


def test_plain(recordings: list[story.Recording]) -> None:
    """With BackgroundTasks, the call of the background task is a child of the request that was over before it began."""
    assert tree(recordings[0]) == ["POST /checkout", "POST /checkout > GET"]
    starts, ends = Spans(map(Span.of, recordings[0].spans)).findings()
    assert "and nothing says that it is background work" in starts.text
    assert ends.text.startswith("ends ")


def test_traced(recordings: list[story.Recording]) -> None:
    """With TracedBackgroundTasks, the task stands between the request and its call, and nothing is wrong."""
    assert tree(recordings[1]) == [
        "POST /checkout",
        "POST /checkout > background_task notify",
        "POST /checkout > background_task notify > GET",
    ]
    assert Spans(map(Span.of, recordings[1].spans)).findings() == []


def test_linked(recordings: list[story.Recording]) -> None:
    """In the link style, the task begins a trace of its own, with a link to the request."""
    assert tree(recordings[2]) == ["POST /checkout", "background_task notify", "background_task notify > GET"]
    recorded = Spans(map(Span.of, recordings[2].spans))
    request, task = recorded.roots()
    assert request.id[0] != task.id[0]
    assert task.links == (request.id,)
    assert task.kind == "consumer"
    assert recorded.findings() == []


def test_stopping(lost: list[story.Recording]) -> None:
    """As in Starlette, the tasks behind the one that failed never run, which a span and a warning of each say."""
    assert tree(lost[0]) == ["POST /signup", *(f"POST /signup > background_task {name}" for name in SIGNUP)]
    recorded = Spans(map(Span.of, lost[0].spans))
    assert recorded.findings() == []
    assert recorded.troubles() == [
        "charge_card failed: PaymentError",
        "2 tasks never ran: update_crm, write_audit",
    ]
    assert recorded.explained() == []
    charge_card = "traced_tasks.demo.signup.charge_card"
    assert [text.split(",")[0].split(" after")[0] for text in lost[0].logged] == [
        f"The background task {charge_card} failed with traced_tasks.demo.signup.PaymentError",
        f"The background task traced_tasks.demo.signup.update_crm was skipped: {charge_card}",
        f"The background task traced_tasks.demo.signup.write_audit was skipped: {charge_card}",
    ]


def test_continuing(lost: list[story.Recording]) -> None:
    """With on_error="continue" all four tasks run, one after the other, and there is one failure to warn of."""
    assert tree(lost[1]) == tree(lost[0])
    recorded = Spans(map(Span.of, lost[1].spans))
    assert recorded.findings() == []
    assert recorded.troubles() == ["charge_card failed: PaymentError"]
    assert recorded.explained() == ["all 4 tasks ran: send_mail, charge_card, update_crm, write_audit"]
    _, *tasks = recorded.all
    assert all(earlier.end <= later.start for earlier, later in pairwise(tasks))
    assert [text.split(" with")[0] for text in lost[1].logged] == [
        "The background task traced_tasks.demo.signup.charge_card failed"
    ]


def test_response(recordings: list[story.Recording]) -> None:
    """The response has reached the client while the background work is under way."""
    for recording in recordings:
        (call,) = [span for span in recording.spans if span.name == "GET"]
        assert call.end_time is not None
        assert recording.answered < call.end_time


def test_service_name(recordings: list[story.Recording]) -> None:
    """The spans are those of a service named shop."""
    spans: list[ReadableSpan] = [span for recording in recordings for span in recording.spans]
    assert {span.resource.attributes["service.name"] for span in spans} == {"shop"}


def test_nothing_stays(recordings: list[story.Recording]) -> None:
    """When the story is told, its servers and their threads are gone."""
    assert [thread.name for thread in threading.enumerate() if "uvicorn" in thread.name] == []


@pytest.mark.usefixtures("short")
def test_progress() -> None:
    """On a terminal one sees what is waited for."""
    file = io.StringIO()
    story.tell(Console(file=file, force_terminal=True, width=100))
    assert "POST /checkout: waiting for the response" in file.getvalue()
    assert "waiting for the work behind it" in file.getvalue()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("width", [80, 120])
def test_plain_text(width: int) -> None:
    """In a file there is text alone: no escape sequence, and no line that is too long."""
    file = io.StringIO()
    story.tell(Console(file=file, width=width))
    assert "\x1b" not in file.getvalue()
    assert max(map(len, file.getvalue().splitlines())) == width


def test_difference(draw: Callable[..., str]) -> None:
    """The lines at the end are those of the app that was run."""
    with story.checkout_story() as told:
        drawn = draw(story._difference(told))
    assert "The lines that made the difference to POST /checkout" in drawn
    assert "- from fastapi import BackgroundTasks" in drawn
    assert "+ from traced_tasks import TracedBackgroundTasks" in drawn
    assert "- async def checkout(tasks: BackgroundTasks)" in drawn
    assert "+ async def checkout(tasks: TracedBackgroundTasks)" in drawn
    assert "  tasks.add_task(notify, http, order=42)" in drawn
    assert "?" not in drawn


def test_difference_of_lost(draw: Callable[..., str]) -> None:
    """Those of the second story are the route's own tracing, and what it has to import."""
    with story.lost_story() as told:
        drawn = draw(story._difference(told))
    assert [text[2:].rstrip(" │") for text in drawn.splitlines() if text.startswith("│ +")] == [
        "+ from typing import Annotated",
        "+ from fastapi import Depends",
        "+ from traced_tasks import TaskTracing, TracedBackgroundTasks",
        "+ async def signup(",
        "+     tasks: Annotated[",
        "+         TracedBackgroundTasks,",
        '+         Depends(TaskTracing(on_error="continue")),',
        "+     ],",
        "+ ) -> dict[str, str]:",
    ]


def test_nothing_spills(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the failure nor the warnings of the second story reach the terminal, but they are told."""
    file = io.StringIO()
    story.tell(Console(file=file, width=300), "lost")
    assert capfd.readouterr() == ("", "")
    assert file.getvalue().count("logged: The background task") == 4
    assert "POST /checkout" not in file.getvalue()
    logger = logging.getLogger("traced_tasks")
    assert logger.propagate
    assert logger.handlers == []


def test_interrupted_server() -> None:
    """A server that is interrupted waits for none of its requests."""
    begun, ended = threading.Event(), threading.Event()

    async def endless(request: Request) -> Response:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return Response()

    def call(url: str) -> None:
        with suppress(httpx.HTTPError):
            httpx.get(url, timeout=None, trust_env=False)

    def interrupt() -> None:
        with serve(Starlette(routes=[Route("/", endless)])) as url:
            client = threading.Thread(target=call, args=(url,))
            client.start()
            clients.append(client)
            assert begun.wait(10)
            raise KeyboardInterrupt

    clients: list[threading.Thread] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert ended.is_set()
    clients[0].join()


def test_held_interrupt() -> None:
    """An interrupt waits until it is asked for, or for the end of the block, and does not hide what else went wrong."""

    def wait(*, asked: bool) -> None:
        with HeldInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            passed.append("signal")
            if asked:
                interrupt.check()
            passed.append("block")

    def fail() -> None:
        with HeldInterrupt():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("else")

    passed: list[str] = []
    for asked in True, False:
        with pytest.raises(KeyboardInterrupt):
            wait(asked=asked)
    assert passed == ["signal", "signal", "block"]
    with pytest.raises(ValueError, match="else"):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupted_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the work behind a response is waited for ends the story, and its servers."""
    monkeypatch.setattr(Status, "update", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        story.tell(Console(file=io.StringIO()))
    assert [thread.name for thread in threading.enumerate() if "uvicorn" in thread.name] == []
