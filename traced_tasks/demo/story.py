"""The story: chapters that are run for real, recorded, and shown."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import time_ns

import httpx
from fastapi import FastAPI
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from traced_tasks.demo import app
from traced_tasks.demo.export import endpoint, export
from traced_tasks.demo.interrupt import HeldInterrupt
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import Span, Spans
from traced_tasks.demo.timeline import Timeline

_INTRODUCTION = (
    "A shop answers POST /checkout. Then its background task, notify, calls a slow mail server. With real servers and "
    "a real request, three times: do the recorded spans say what happened?\n"
)


@dataclass(frozen=True)
class Chapter:
    """One way to do it.

    Attributes:
        title: What is tried.
        text: A sentence about it.
        create_app: Makes the app, given the provider that records its spans.
        method: The method of the request.
        path: The path of the request.
    """

    title: str
    text: str
    create_app: Callable[[TracerProvider], FastAPI]
    method: str = "POST"
    path: str = "/checkout"


@dataclass(frozen=True)
class Recording:
    """What was recorded in a chapter: its spans, and when (in ns since the epoch) the response reached the client."""

    spans: Sequence[ReadableSpan]
    answered: int


def checkout(mail_url: str) -> list[Chapter]:
    """Return the chapters of the story of opentelemetry-python-contrib issue 4251."""
    return [
        Chapter(
            "1. BackgroundTasks",
            "FastAPI's own background tasks, its request telemetry on.",
            partial(app.create_app, app.plain, mail_url),
        ),
        Chapter(
            "2. TracedBackgroundTasks",
            "The parameter's annotation is another one, all else is as before.",
            partial(app.create_app, app.traced, mail_url),
        ),
        Chapter(
            '3. TracedBackgroundTasks with propagation_style="link"',
            "The background work in a trace of its own, with a link to the request.",
            partial(app.create_app, app.linked, mail_url),
        ),
    ]


def record(
    chapter: Chapter, client: httpx.Client, progress: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Recording:
    """Run a chapter: serve its app, send its request, wait for the work behind the response.

    Args:
        chapter: The chapter.
        client: Sends the request. It is not instrumented.
        progress: Is told what is waited for.
        check: Is called while the work is waited for. If it raises, the wait is over.

    Raises:
        OSError: There is no port for the app, or it cannot be reached, or no span was recorded.
    """
    exporter = InMemorySpanExporter()
    provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": "checkout"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serve(chapter.create_app(provider), check) as url:
        progress(f"{chapter.method} {chapter.path}: waiting for the response")
        try:
            client.request(chapter.method, f"{url}{chapter.path}")
        except httpx.HTTPError as exc:
            raise OSError(f"the app at {url} does not answer: {exc}") from exc
        answered = time_ns()
        progress(f"{chapter.method} {chapter.path}: the response is here, waiting for the work behind it")
    provider.shutdown()
    spans = exporter.get_finished_spans()
    if not spans:
        raise OSError("no span was recorded; is OTEL_SDK_DISABLED set?")
    return Recording(spans, answered)


def tell(console: Console) -> list[RenderableType]:
    """Tell the story of the checkout.

    Args:
        console: Where to.

    Returns:
        What was printed, apart from what concerns this run only.

    Raises:
        OSError: As for `record`.
    """
    shown: list[RenderableType] = []
    spans: list[ReadableSpan] = []

    def show(*parts: RenderableType) -> None:
        console.print(*parts, sep="\n")
        shown.extend(parts)

    show(Text(_INTRODUCTION))
    # A proxy in the environment is none of the story's business.
    with (
        HeldInterrupt() as interrupt,
        httpx.Client(trust_env=False) as client,
        serve(app.create_mail_server()) as mail_url,
    ):
        for chapter in checkout(mail_url):
            # A spinner of ASCII characters, because it has to turn on any terminal.
            with console.status("", spinner="line") as status:
                recording = record(chapter, client, status.update, interrupt.check)
            show(Timeline(chapter.title, chapter.text, Spans(map(Span.of, recording.spans)), recording.answered), "")
            spans += recording.spans
    if where := endpoint():
        with console.status(f"sending {len(spans)} spans to {where}", spinner="line"):
            problem = export(spans)
        console.print(
            Text(f"The spans were not exported to {where}: {problem}\n", "red")
            if problem
            else Text(f"The {len(spans)} spans were exported to {where}, service checkout.\n"),
            soft_wrap=True,
        )
    show(_difference())
    return shown


def _difference() -> Panel:
    lines = difflib.ndiff(app.code_of(app.plain), app.code_of(app.traced))
    styles = {"-": "red", "+": "green"}
    return Panel(
        Group(*(Text(line, styles.get(line[0], "")) for line in lines if not line.startswith("?"))),
        title=Text("The lines that made the difference", "bold"),
        title_align="left",
        border_style="bright_black",
        padding=(0, 1),
    )
