"""The story, told for real."""

import asyncio
import io
import logging
import re
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console
from rich.status import Status
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from traced_tasks.demo import app, chapter, signup, story
from traced_tasks.demo.chapter import Chapter, Recording, record
from traced_tasks.demo.interrupt import HeldInterrupt
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import Span, Spans

SIGNUP = ["send_mail", "charge_card", "update_crm", "write_audit"]


def tree(recording: Recording) -> list[str]:
    """The names of the spans, each behind those that are above it."""
    recorded = Spans(map(Span.of, recording.spans))

    def paths(span: Span, above: str) -> list[str]:
        path = f"{above}{span.name}"
        return [path, *(found for child in recorded.children(span) for found in paths(child, f"{path} > "))]

    return [found for root in recorded.roots() for found in paths(root, "")]


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    said: list[str] = []
    with httpx.Client(trust_env=False, verify=False) as client, story.checkout_story() as told:
        recordings = [record(chapter, client, said.append) for chapter in told.chapters]
    assert said == [
        "POST /checkout: waiting for the response",
        "POST /checkout: the response is here, waiting for the work behind it",
    ] * len(recordings)
    return recordings


@pytest.fixture(scope="module")
def lost() -> list[Recording]:
    with httpx.Client(trust_env=False, verify=False) as client, story.lost_story() as told:
        return [record(chapter, client, lambda _: None) for chapter in told.chapters]


def test_plain(recordings: list[Recording]) -> None:
    """With BackgroundTasks, the call of the background task is a child of the request that was over before it began."""
    assert tree(recordings[0]) == ["POST /checkout", "POST /checkout > GET"]
    starts, ends = Spans(map(Span.of, recordings[0].spans)).findings()
    assert "and nothing says that it is background work" in starts.text
    assert ends.text.startswith("ends ")


def test_traced(recordings: list[Recording]) -> None:
    """With TracedBackgroundTasks, the task stands between the request and its call, and nothing is wrong."""
    assert tree(recordings[1]) == [
        "POST /checkout",
        "POST /checkout > background_task notify",
        "POST /checkout > background_task notify > GET",
    ]
    assert Spans(map(Span.of, recordings[1].spans)).findings() == []


def test_linked(recordings: list[Recording]) -> None:
    """In the link style, the task begins a trace of its own, with a link to the request."""
    assert tree(recordings[2]) == ["POST /checkout", "background_task notify", "background_task notify > GET"]
    recorded = Spans(map(Span.of, recordings[2].spans))
    request, task = recorded.roots()
    assert request.id[0] != task.id[0]
    assert task.links == (request.id,)
    assert task.kind == "consumer"
    assert recorded.findings() == []


def test_silence(lost: list[Recording]) -> None:
    """With BackgroundTasks two tasks never run, and only the server says a word: of the one that failed."""
    assert tree(lost[0]) == ["POST /signup"]
    assert lost[0].untold == ["update_crm", "write_audit"]
    assert lost[0].logged == ["Exception in ASGI application (PaymentError, with its traceback)"]
    assert lost[0].counted == []
    assert lost[0].ended > lost[0].answered


def test_silence_with_operation_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI's spans of background tasks, which the story leaves out, do not name those that never ran either."""

    def create_app(*args: Any) -> FastAPI:
        return signup.create_app(signup.plain, *args)

    def more(*, telemetry: Any, **options: Any) -> FastAPI:
        return FastAPI(telemetry=telemetry | {"operation_spans": True}, **options)

    monkeypatch.setattr(app, "FastAPI", more)
    told = Chapter("A title", "A sentence.", create_app, "/signup", never_ran=signup.never_ran)
    with httpx.Client(trust_env=False, verify=False) as client:
        recording = record(told, client, lambda _: None)
    assert [span.name for span in recording.spans].count("fastapi.background_task") == 2
    assert recording.untold == ["update_crm", "write_audit"]


def test_told_somewhere() -> None:
    """A task is untold where no span, no log line and no metric has its name."""
    told = ["{}", "Exception in ASGI application", "shop.update_crm"]
    assert chapter._untold(["update_crm", "write_audit"], *told) == ["write_audit"]


def test_stopping(lost: list[Recording]) -> None:
    """The tasks behind the one that failed still never run, which a span, a warning and the counter say."""
    assert tree(lost[1]) == ["POST /signup", *(f"POST /signup > background_task {name}" for name in SIGNUP)]
    recorded = Spans(map(Span.of, lost[1].spans))
    assert recorded.findings() == []
    assert recorded.troubles() == [
        "charge_card failed: PaymentError",
        "2 tasks never ran: update_crm, write_audit",
    ]
    assert recorded.explained() == []
    charge_card = "traced_tasks.demo.signup.charge_card"
    assert [text.split(",")[0].split(" after")[0] for text in lost[1].logged] == [
        f"The background task {charge_card} failed with traced_tasks.demo.signup.PaymentError",
        f"The background task traced_tasks.demo.signup.update_crm was skipped: {charge_card}",
        f"The background task traced_tasks.demo.signup.write_audit was skipped: {charge_card}",
        "Exception in ASGI application (PaymentError",
    ]
    assert lost[1].counted == ["background_task.lost is 2"]
    assert lost[1].untold == []


def test_continuing(lost: list[Recording]) -> None:
    """With on_error="continue" all four tasks run, one after the other, and there is one failure to warn of."""
    assert tree(lost[2]) == tree(lost[1])
    recorded = Spans(map(Span.of, lost[2].spans))
    assert recorded.findings() == []
    assert recorded.troubles() == ["charge_card failed: PaymentError"]
    assert recorded.explained() == ["all 4 tasks ran: send_mail, charge_card, update_crm, write_audit"]
    _, *tasks = recorded.all
    assert all(earlier.end <= later.start for earlier, later in pairwise(tasks))
    assert [text.split(" with")[0] for text in lost[2].logged] == [
        "The background task traced_tasks.demo.signup.charge_card failed",
        "Exception in ASGI application (ExceptionGroup,",
    ]
    assert lost[2].counted == lost[2].untold == []


def test_response(recordings: list[Recording]) -> None:
    """The response has reached the client while the background work is under way."""
    for recording in recordings:
        (call,) = [span for span in recording.spans if span.name == "GET"]
        assert call.end_time is not None
        assert recording.answered < call.end_time


def test_service_name(recordings: list[Recording]) -> None:
    """The spans are those of a service named shop."""
    spans: list[ReadableSpan] = [span for recording in recordings for span in recording.spans]
    assert {span.resource.attributes["service.name"] for span in spans} == {"shop"}


def test_nothing_stays(recordings: list[Recording]) -> None:
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


def changes(drawn: str) -> list[str]:
    return [text[2:].rstrip(" │") for text in drawn.splitlines() if text.startswith(("│ +", "│ -", "│   from "))]


def test_difference(draw: Callable[..., str]) -> None:
    """The code is that of the apps that are run, from chapter to chapter."""
    with story.checkout_story() as told:
        drawn = draw(story._difference(told))
    assert "The difference in POST /checkout" in drawn
    assert changes(drawn) == [
        "  from 1 to 2:",
        "- from fastapi import BackgroundTasks",
        "+ from traced_tasks import TracedBackgroundTasks",
        "- async def checkout(tasks: BackgroundTasks) -> dict[str, str]:",
        "+ async def checkout(tasks: TracedBackgroundTasks) -> dict[str, str]:",
        "  from 2 to 3:",
        "+ from typing import Annotated",
        "- from traced_tasks import TracedBackgroundTasks",
        "+ from traced_tasks import TaskTracing, TracedBackgroundTasks",
        "- async def checkout(tasks: TracedBackgroundTasks) -> dict[str, str]:",
        "+ async def checkout(",
        "+     tasks: Annotated[",
        "+         TracedBackgroundTasks,",
        '+         TaskTracing(propagation_style="link"),',
        "+     ],",
        "+ ) -> dict[str, str]:",
    ]
    assert drawn.count("tasks.add_task(notify, http, order=42)") == 1


def test_difference_of_lost(draw: Callable[..., str]) -> None:
    """Those of the second story are the annotation, and then its option."""
    with story.lost_story() as told:
        drawn = changes(draw(story._difference(told)))
    assert "+ async def signup(tasks: TracedBackgroundTasks) -> dict[str, str]:" in drawn
    assert '+         TaskTracing(on_error="continue"),' in drawn


@pytest.mark.parametrize("name", ["checkout", "lost"])
def test_order(name: str) -> None:
    """The difference in code comes before the chapters, and two lines of verdict come last."""
    file = io.StringIO()
    story.tell(Console(file=file, width=80), name)
    lines = file.getvalue().splitlines()
    assert [text[3:].split(" ─")[0] for text in lines if text.startswith("╭")] == [
        f"The difference in POST /{'signup' if name == 'lost' else name}",
        "1. BackgroundTasks",
        "2. TracedBackgroundTasks",
        '3. on_error="continue"' if name == "lost" else '3. propagation_style="link"',
    ]
    assert [text[:18] for text in lines[-3:]] == ["", "✗ BackgroundTasks:", "✓ TracedBackground"]


def test_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first story begins before the servers and the worker of the others are started."""
    file = io.StringIO()

    @contextmanager
    def slow() -> Generator[story.Story, None, None]:
        begun.append("The difference in POST /signup" in file.getvalue())
        raise OSError("no worker")
        yield

    begun: list[bool] = []
    monkeypatch.setattr(story, "STORIES", {"lost": story.lost_story, "slow": slow})
    with pytest.raises(OSError, match="no worker"):
        story.tell(Console(file=file))
    assert begun == [True]


def test_verdict(recordings: list[Recording], lost: list[Recording]) -> None:
    """The verdict says what was recorded, and not what was not."""
    for tell, recorded in (story.checkout_story, recordings), (story.lost_story, lost):
        with tell() as told:
            timelines = [story._timeline(*each) for each in zip(told.chapters, recorded, strict=True)]
            first, second, third = timelines
            assert [claim.holds(timelines) for claim in told.verdict] == [True, True]
            assert [claim.holds([second, first, third]) for claim in told.verdict] == [False, False]


def test_nothing_spills(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the failure nor the warnings of the second story reach the terminal, but they are told."""
    file = io.StringIO()
    story.tell(Console(file=file, width=300), "lost")
    assert capfd.readouterr() == ("", "")
    assert len(re.findall("logged: +The background task", file.getvalue())) == 4
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
            httpx.get(url, timeout=None, trust_env=False, verify=False)

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
