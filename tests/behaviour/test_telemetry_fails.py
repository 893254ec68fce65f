"""Telemetry that fails never breaks a task."""

import contextvars
import logging
import sys
from collections.abc import Generator

import anyio
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks._options import TaskHook


class Broken(SpanProcessor):
    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        if self.moment == "start":
            raise RuntimeError("processor broke")

    def on_end(self, span: ReadableSpan) -> None:
        if self.moment == "end":
            raise RuntimeError("processor broke") from sys.exc_info()[1]


@pytest.mark.parametrize("moment", ["start", "end"])
async def test_a_processor_that_raises(spans: Spans, caplog: pytest.LogCaptureFixture, moment: str) -> None:
    """A span that cannot be started or ended leaves the task its run and its context, and one error in the log."""
    spans.provider.add_span_processor(Broken(moment))
    seen: list[object] = []
    token = context.attach(baggage.set_baggage("user", "42"))
    task = TracedBackgroundTask(lambda: seen.append(baggage.get_baggage("user")))
    context.detach(token)
    before = context.get_current()

    await task()

    assert seen == ["42"]
    assert context.get_current() == before
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("traced_tasks", logging.ERROR)
    assert "test_a_processor_that_raises.<locals>.<lambda>" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("moment", ["start", "end"])
async def test_a_lost_task(spans: Spans, caplog: pytest.LogCaptureFixture, moment: str) -> None:
    """A lost task whose span cannot be made is still warned of, and the failure is logged."""
    spans.provider.add_span_processor(Broken(moment))
    task = TracedBackgroundTask(print)

    del task

    lost, failure = sorted(caplog.records, key=lambda record: record.levelno)
    assert "builtins.print was dropped" in lost.getMessage()
    assert failure.getMessage() == "The loss of the background task builtins.print could not be traced."


async def test_a_task_that_does_not_know_since_when_it_waits(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task with a queue time that is none runs, without a span and a measurement of it."""
    ran: list[int] = []
    task = TracedBackgroundTask(ran.append, 42)
    task.queued_at = "now"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]

    await task()

    assert ran == [42]
    assert [record.getMessage() for record in caplog.records] == [
        "The background task list.append runs without a span, which could not be started."
    ]


@pytest.mark.parametrize("record_exception", [True, False])
async def test_the_log_keeps_the_tasks_secret(
    spans: Spans, caplog: pytest.LogCaptureFixture, record_exception: bool
) -> None:
    """What is logged of failing telemetry does not carry the exception of the task along."""
    spans.provider.add_span_processor(Broken("end"))

    def fail() -> None:
        raise ValueError("card 4242 refused")

    tasks = TracedBackgroundTasks()
    tasks.with_options(record_exception=record_exception).add_task(fail)

    with pytest.raises(ValueError, match="card 4242 refused") as caught:
        await tasks()

    assert "processor broke" in caplog.text
    assert "refused" not in caplog.text
    assert caught.value.__context__ is None


def broken_hook(span: trace.Span, task: TracedBackgroundTask) -> None:
    raise RuntimeError("hook broke")


@pytest.mark.parametrize("hook", [None, broken_hook])
async def test_the_log_of_a_skipped_task_keeps_the_secret_of_another(
    spans: Spans, caplog: pytest.LogCaptureFixture, hook: TaskHook | None
) -> None:
    """What is logged of failing telemetry of a skipped task does not carry the exception of the failed one along."""
    if hook is None:
        spans.provider.add_span_processor(Broken("end"))

    async def fail() -> None:
        raise ValueError("card 4242 refused")

    tasks = TracedBackgroundTasks(tracing=TaskTracing(record_exception=False))
    tasks.add_task(fail)
    tasks.with_options(task_hook=hook).add_task(print)

    with pytest.raises(ValueError, match="card 4242 refused"):
        await tasks()

    assert "broke" in caplog.text
    assert "refused" not in caplog.text


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_exception_without_words(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that cannot be printed goes on as it is, and its class is on the span."""

    def fail() -> None:
        raise UnspeakableError

    with pytest.raises(UnspeakableError):
        await TracedBackgroundTask(fail)()

    (span,) = spans()
    assert (span.attributes or {})["error.type"] == "tests.behaviour.test_telemetry_fails.UnspeakableError"
    assert not span.status.is_ok
    (event,) = span.events
    assert "raise UnspeakableError" in str((event.attributes or {})["exception.stacktrace"])
    assert [record.exc_info for record in caplog.records] == [None]


async def test_an_unsampled_task(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose span is not sampled runs and fails, and nobody asks its exception for words."""
    spans.provider.sampler = ALWAYS_OFF

    def fail() -> None:
        raise UnspeakableError

    with pytest.raises(UnspeakableError):
        await TracedBackgroundTask(fail)()

    assert spans() == []
    assert [record.exc_info for record in caplog.records] == [None]


class Unnameable:
    def __init__(self) -> None:
        self.__dict__["__qualname__"] = "notify"

    @property
    def __module__(self) -> str:  # type: ignore[override]
        raise RuntimeError("lazy")

    def __call__(self) -> None: ...


async def test_a_function_without_a_name(spans: Spans) -> None:
    """A callable object that raises when it is asked for its name runs, and is named after its class."""
    await TracedBackgroundTask(Unnameable())()

    assert [span.name for span in spans()] == ["background_task Unnameable"]


async def test_a_context_that_is_none(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose captured context was overwritten with something else runs, without a span."""
    ran: list[int] = []
    task = TracedBackgroundTask(ran.append, 1)
    task.context = None  # type: ignore[assignment]

    await task()

    assert ran == [1]
    assert [record.name for record in caplog.records] == ["traced_tasks"]


async def test_a_coroutine_that_is_thrown_away(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task that is closed from another contextvars context ends its span, and OpenTelemetry has nothing to log."""

    class Suspend:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def wait() -> None:
        await Suspend()

    coroutine = TracedBackgroundTask(wait)()
    contextvars.Context().run(coroutine.send, None)

    coroutine.close()

    assert [(span.attributes or {})["error.type"] for span in spans()] == ["GeneratorExit"]
    (warning,) = caplog.records
    assert "wait failed with GeneratorExit after" in warning.getMessage()


async def test_a_coroutine_that_is_closed(spans: Spans) -> None:
    """A task that is closed where it was running leaves the context as it was."""

    async def wait() -> None:
        await anyio.sleep(1)

    before = context.get_current()
    coroutine = TracedBackgroundTask(wait)()
    coroutine.send(None)

    coroutine.close()

    assert context.get_current() is before


class Nameless(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")


class NamelessError(Exception, metaclass=Nameless):
    pass


async def test_an_exception_without_a_name(spans: Spans) -> None:
    """An exception whose class raises when it is asked for its module goes on as it is, and is on the span."""

    def fail() -> None:
        raise NamelessError

    with pytest.raises(NamelessError):
        await TracedBackgroundTask(fail)()

    (span,) = spans()
    assert (span.attributes or {})["error.type"] == "NamelessError"
    assert not span.status.is_ok
