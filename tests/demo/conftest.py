import io
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from traced_tasks.demo import story


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what would make rich or OpenTelemetry behave in another way."""
    for name in os.environ:
        if name.startswith(("OTEL_", "TTY_")) or name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second chapter of the first story."""

    @contextmanager
    def shortened() -> Generator[story.Story, None, None]:
        with story.checkout_story() as told:
            yield replace(told, chapters=told.chapters[1:2])

    monkeypatch.setattr(story, "STORIES", {"checkout": shortened})


@pytest.fixture
def draw() -> Callable[..., str]:
    """Draw something as text, as a file with that encoding would have it."""

    def draw(renderable: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=file, width=width, highlight=False).print(renderable)
        file.seek(0)
        return file.read()

    return draw


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A test run in the background of a shell ignores Ctrl-C, and so would the programs that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
