"""Telemetry that fails never breaks a task."""

import logging

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tests.conftest import Spans
from traced_tasks import TracedBackgroundTask


class Broken(SpanProcessor):
    def __init__(self, moment: str) -> None:
        self.moment = moment

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        if self.moment == "start":
            raise RuntimeError("processor broke")

    def on_end(self, span: ReadableSpan) -> None:
        if self.moment == "end":
            raise RuntimeError("processor broke")


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
    assert [record.name for record in caplog.records] == ["traced_tasks"]


async def test_an_unsampled_task(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A task whose span is not sampled runs and fails, and nobody asks its exception for words."""
    spans.provider.sampler = ALWAYS_OFF

    def fail() -> None:
        raise UnspeakableError

    with pytest.raises(UnspeakableError):
        await TracedBackgroundTask(fail)()

    assert spans() == []
    assert caplog.records == []
