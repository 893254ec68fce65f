"""What the span of a task looks like."""

import functools
from collections.abc import Callable
from importlib.metadata import version
from typing import Any
from unittest.mock import AsyncMock, Mock, create_autospec

import anyio
import pytest
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags

from tests.conftest import Spans
from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks


def function() -> None: ...


async def async_function() -> None: ...


@functools.lru_cache
def cached() -> None: ...


def decorated(func: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(func)
    def wrapper() -> None: ...

    return wrapper


class Mailer:
    def send(self) -> None: ...

    @classmethod
    def flush(cls) -> None: ...

    @staticmethod
    def ping() -> None: ...

    def __call__(self) -> None: ...


class AsyncMailer:
    async def __call__(self) -> None: ...


class Liar:
    """It says that it is a partial, and its qualified name is none."""

    __class__ = functools.partial  # type: ignore[assignment]
    func = print
    __qualname__: Any

    def __init__(self) -> None:
        self.__qualname__ = 42

    def __call__(self) -> None: ...


class Proxy:
    """It has every attribute, and each is a string."""

    def __getattr__(self, name: str) -> str:
        return name

    def __call__(self) -> None: ...


class Nameless(type):
    """Its classes refuse to tell their names."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__"):
            raise RuntimeError
        return super().__getattribute__(name)


class Secret(metaclass=Nameless):
    def __call__(self) -> None: ...


def local() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


NAMES: list[tuple[Callable[[], Any], str, str]] = [
    (function, "function", "tests.behaviour.test_span.function"),
    (async_function, "async_function", "tests.behaviour.test_span.async_function"),
    (decorated(function), "function", "tests.behaviour.test_span.function"),
    (cached, "cached", "tests.behaviour.test_span.cached"),
    (local(), "inner", "tests.behaviour.test_span.local.<locals>.inner"),
    (lambda: None, "<lambda>", "tests.behaviour.test_span.<lambda>"),
    (Mailer().send, "Mailer.send", "tests.behaviour.test_span.Mailer.send"),
    (Mailer.flush, "Mailer.flush", "tests.behaviour.test_span.Mailer.flush"),
    (Mailer.ping, "Mailer.ping", "tests.behaviour.test_span.Mailer.ping"),
    (Mailer, "Mailer", "tests.behaviour.test_span.Mailer"),
    (Mailer(), "Mailer", "tests.behaviour.test_span.Mailer"),
    (AsyncMailer(), "AsyncMailer", "tests.behaviour.test_span.AsyncMailer"),
    (Liar(), "Liar", "tests.behaviour.test_span.Liar"),
    (Proxy(), "Proxy", "tests.behaviour.test_span.Proxy"),
    (functools.partial(functools.partial(print, 1), 2), "print", "builtins.print"),
    (functools.partial(Mailer().send), "Mailer.send", "tests.behaviour.test_span.Mailer.send"),
    (Secret(), "Secret", "Secret"),
    ([].copy, "list.copy", "list.copy"),
    (Mock(), "Mock", "unittest.mock.Mock"),
    (AsyncMock(), "AsyncMock", "unittest.mock.AsyncMock"),
    (Mock(spec=functools.partial(function)), "Mock", "unittest.mock.Mock"),
    (create_autospec(function), "function", "function"),
]


@pytest.mark.parametrize(("func", "name", "function_name"), NAMES)
async def test_names(func: Callable[[], Any], name: str, function_name: str, spans: Spans) -> None:
    """A span is named after the function that was meant, whatever wraps it."""
    await TracedBackgroundTask(func)()

    (span,) = spans()
    assert span.name == f"background_task {name}"
    assert span.attributes is not None
    assert span.attributes["code.function.name"] == function_name


async def test_scope(spans: Spans) -> None:
    """The instrumentation scope is the package, with its version."""
    await TracedBackgroundTask(function)()

    (span,) = spans()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "traced_tasks"
    assert span.instrumentation_scope.version == version("traced-tasks")


async def test_queue_duration(spans: Spans) -> None:
    """The time in the queue is the time from `add_task` to the start, in seconds, and not part of the span."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(anyio.sleep, 0.05)
    tasks.add_task(async_function)

    await tasks()

    first, second = spans()
    assert first.attributes is not None
    assert second.attributes is not None
    queued = second.attributes["background_task.queue.duration"]
    assert isinstance(queued, float)
    assert first.end_time is not None
    assert first.start_time is not None
    assert queued < 10
    assert queued >= (first.end_time - first.start_time) / 1e9 - 0.001
    assert first.attributes["background_task.queue.duration"] < queued  # type: ignore[operator]


async def test_all_is_known_at_the_start(spans: Spans) -> None:
    """Name, kind, attributes and links are there when the span starts, so a sampler can decide by them."""
    link = Link(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    tasks = TracedBackgroundTasks()
    tasks.with_options(attributes={"tier": "gold"}, links=[link], span_kind=SpanKind.PRODUCER).add_task(function)

    await tasks()

    (start,) = spans.starts
    assert (start.name, start.kind, start.links) == ("background_task function", SpanKind.PRODUCER, [link])
    assert start.attributes == {"code.function.name", "background_task.queue.duration", "tier"}
