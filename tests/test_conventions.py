"""The names on the page "Conventions", and what the page "Security" says, are those of tasks of every outcome."""

import json
import logging
import re
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import anyio
import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from opentelemetry import _logs, baggage, context, metrics, propagate, trace
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from pydantic import ValidationError

from tests.conftest import Metrics, Spans, collect_garbage
from tests.engines.conftest import ENGINES
from tests.engines.test_handover import make, queue, work_off
from tests.programs import DOCS
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks, report_unfinished_tasks
from traced_tasks._message import read
from traced_tasks._providers import SCHEMA_URL
from traced_tasks._version import __version__
from traced_tasks.testing import record_tasks

ARGUMENT = 4242424242424242  # a number that nobody but the task should see
LOST = {"skipped", "dropped", "never_awaited", "never_iterated", "unconfirmed"}


sent: list[dict[str, str]] = []  # with an HTTP call of a task


async def notify(card: int) -> None:
    sent.append({})
    propagate.inject(sent[-1])


def fail(card: int) -> None:
    raise LookupError("the shop is closed")


def write(card: int) -> Iterator[int]:
    yield card


async def export(card: int) -> AsyncIterator[int]:
    yield card


class Lines(logging.Handler):
    """The lines of the logger `traced_tasks`, each with the span that was current."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[logging.LogRecord, trace.Span]] = []
        self.next: SimpleQueue[str] = SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append((record, trace.get_current_span()))
        self.next.put(record.getMessage())

    def wait_for(self, part: str) -> None:
        while part not in self.next.get(timeout=20):
            pass


@dataclass
class Told:
    """All that was told of tasks of every outcome."""

    spans: list[ReadableSpan] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    scopes: list[Any] = field(default_factory=list)
    logs: list[ReadableLogRecord] = field(default_factory=list)
    lines: list[tuple[logging.LogRecord, trace.Span]] = field(default_factory=list)
    headers: set[str] = field(default_factory=set)
    header: dict[str, Any] = field(default_factory=dict)

    def named(self, prefix: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.startswith(f"{prefix} ")]


async def run_all(told: Told) -> None:
    """Run tasks of every outcome in this process, and hand over to each engine, with and without its broker."""
    context.attach(baggage.set_baggage("tenant", "acme"))
    with trace.get_tracer("shop").start_as_current_span("POST /checkout"):
        for style in ("child", "link", "none"):
            tasks = TracedBackgroundTasks(tracing=TaskTracing(propagation_style=style))
            tasks.add_task(notify, ARGUMENT)
            tasks.add_task(export, ARGUMENT)
            tasks.add_task(write, card=ARGUMENT)
            tasks.with_options(task_hook=fail).add_task(notify, ARGUMENT)  # type: ignore[arg-type]
            tasks.add_task(fail, ARGUMENT)
            tasks.add_task(notify, ARGUMENT)
            with pytest.raises(LookupError):
                await tasks()
            TracedBackgroundTask(notify, ARGUMENT)
        for engine in ENGINES:
            shop = make(engine)
            options: dict[str, Any] = {"span_name": None, "attributes": {"tier": "gold"}, "record_exception": False}
            tasks = queue(shop, propagation_style="link", **options)
            tasks.add_task(shop.notify, ARGUMENT)
            await tasks()
            if isinstance(shop.broker, StubBroker):
                (message,) = [dramatiq.Message.decode(each) for each in shop.broker.queues["default"].queue]
                told.headers = {*message.options}
                told.header = json.loads(message.options["traced_tasks"])
            await anyio.to_thread.run_sync(work_off, shop)
            shop = make(engine, broken=True)
            for record_exception in (True, False):
                broken = queue(shop, record_exception=record_exception, attributes={"tier": "silver"})
                broken.add_task(shop.notify, ARGUMENT)
                with pytest.raises(Exception, match=r"."):
                    await broken()


def stop_with_a_task(lines: Lines) -> None:
    """Be told to stop while a task waits, which ends, and end with one that still waits."""
    earlier = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with report_unfinished_tasks():
            task = TracedBackgroundTask(notify, ARGUMENT)
            signal.raise_signal(signal.SIGTERM)
            lines.wait_for("Unfinished background tasks at SIGTERM")
            anyio.run(task)
            lines.wait_for("have ended")
    finally:
        signal.signal(signal.SIGTERM, earlier)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    sent.clear()
    told, lines, spans, measured = Told(), Lines(), Spans(), Metrics()
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = logging.getLogger("traced_tasks")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
        patched.setattr(trace, "_TRACER_PROVIDER", spans.provider)
        patched.setattr(metrics._internal, "_METER_PROVIDER", measured.provider)
        patched.setattr(_logs._internal, "_LOGGER_PROVIDER", provider)
        anyio.run(run_all, told)
        stop_with_a_task(lines)
        collect_garbage()
        told.spans = spans.tasks()
        data: Any = measured.reader.get_metrics_data()
        told.scopes = [each for resource in data.resource_metrics for each in resource.scope_metrics]
        told.metrics = [metric for scope in told.scopes for metric in scope.metrics]
        told.logs = list(exporter.get_finished_logs())
        told.lines = lines.all
        yield told
    logger.removeHandler(lines)
    logger.setLevel(logging.NOTSET)
    for each in (spans.provider, measured.provider, provider):
        each.shutdown()


PAGE = (DOCS / "conventions.md").read_text()


def table(heading: str, page: str = PAGE) -> dict[str, str]:
    """The rows below a table's first heading, by what stands in their first column."""
    rows = page.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return {row.partition("| `")[2].partition("` |")[0]: row.partition("` |")[2] for row in rows if row[:3] == "| `"}


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def test_scope(told: Told) -> None:
    """Tracer, meter and logger have the name, the version and the schema of the page."""
    scopes = [span.instrumentation_scope for span in told.spans]
    scopes += [each.scope for each in told.scopes] + [each.instrumentation_scope for each in told.logs]

    assert {(each.name, each.version, each.schema_url) for each in scopes if each} == {
        ("traced_tasks", __version__, SCHEMA_URL)
    }
    assert f"`{SCHEMA_URL}`" in PAGE
    assert f"semantic conventions, version {SCHEMA_URL.rpartition('/')[2]}." in PAGE


def test_spans(told: Told) -> None:
    """The page has each name and kind of a span, and no other."""
    kinds: dict[str, set[str]] = {}
    for span in told.spans:
        kinds.setdefault(f"{span.name.partition(' ')[0]} {{function}}", set()).add(span.kind.name)
        assert (span.status.status_code is StatusCode.ERROR) == ("error.type" in (span.attributes or {}))

    assert {name: set(re.findall(r"`([A-Z]+)`", row)) for name, row in table("name").items()} == kinds


def test_attributes(told: Told) -> None:
    """The page has each attribute of a span, and no other."""
    assert set(table("attribute")) == {name for span in told.spans for name in span.attributes or {}} - {"tier"}


def test_values_of_error_type(told: Told) -> None:
    """Each `error.type` is on the page, or is the class of an exception; on the spans and on the counter."""
    line = PAGE.partition("which are ours:\n")[2].partition("\n\n")[0]
    (lost,) = [metric for metric in told.metrics if metric.name == "background_task.lost"]

    assert names_in(line) == LOST
    assert {str((span.attributes or {}).get("error.type")) for span in told.spans} - LOST == {"None", "LookupError"}
    assert {point.attributes["error.type"] for point in lost.data.data_points} == LOST


def test_events(told: Told) -> None:
    """The page has each event with its attributes, and no other."""
    events = {event.name: {*(event.attributes or {})} for span in told.spans for event in span.events}

    assert {name: names_in(row) for name, row in table("event").items()} == events


def test_metrics(told: Told) -> None:
    """The page has each metric with its instrument, its unit and its attributes, and no other."""
    instruments = {"Histogram": "histogram", "True": "counter", "False": "up-down counter"}
    found = {
        metric.name: f" {kind} | `{metric.unit}` | {', '.join(f'`{name}`' for name in sorted(names))} |"
        for metric in told.metrics
        for kind in [instruments[str(getattr(metric.data, "is_monotonic", "Histogram"))]]
        for names in [{name for point in metric.data.data_points for name in point.attributes}]
    }

    assert table("metric") == found


def test_log_records(told: Told) -> None:
    """The page has the log record of an exception with its attributes, and each `extra` of the logger."""
    records = {each.log_record.event_name: {*(each.log_record.attributes or {})} for each in told.logs}
    extras = {name for line, _ in told.lines for name in vars(line) if "." in name}

    assert {name: names_in(row) for name, row in table("log record").items()} == records
    assert set(table("`extra`")) == extras


def test_messages(told: Told) -> None:
    """The page has each header of a message, and all that is in ours."""
    section = PAGE.partition("\n## Messages\n")[2].partition("\n## ")[0]

    assert told.headers | told.header.keys() | {"span_name"} == names_in(section) - {"add_task"}


def test_lines(told: Told) -> None:
    """Each line of the logger is on the page "Logs", with its level and its `extra`; and inside of its task's span."""
    rows = re.findall(r"^\| `(\w+)` \| .*?`(.+?\.)` \|$", (DOCS / "logs.md").read_text(), re.MULTILINE)
    of_a_task = {"WARNING": {"code.function.name", "error.type"}, "ERROR": {"code.function.name"}}
    unfinished = {"WARNING": {"background_task.running", "background_task.waiting"}, "INFO": set[str]()}
    found: set[str] = set()
    for line, span in told.lines:
        (row,) = [row for row in rows if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(row[1])), line.getMessage())]
        is_of_a_task = "{function}" in row[1]
        assert row[0] == line.levelname
        assert {name for name in vars(line) if "." in name} == (of_a_task if is_of_a_task else unfinished)[row[0]]
        assert bool(line.exc_info) == (row[0] == "ERROR")
        assert span.get_span_context().is_valid == is_of_a_task
        found.add(row[1])

    assert found == {row[1] for row in rows}


# security.md


def test_arguments(told: Told) -> None:
    """No argument of a task, no baggage and no URL of a broker is in what was told, but in the engine's exception."""
    lines = "".join(f"{vars(line)} {line.getMessage()}" for line, _ in told.lines)
    spans = "".join(span.to_json() for span in told.spans)
    measured = "".join(metric.to_json() for metric in told.metrics)
    logs = "".join(record.to_json() for record in told.logs)

    for text in (lines, spans, measured, logs):
        assert "notify" in text
        assert str(ARGUMENT) not in text
        assert "acme" not in text
    assert "secret" not in lines + measured


def test_no_exception(told: Told) -> None:
    """With `record_exception=False` the span of a hand-over that failed has nothing of what the engine raised."""
    failed = [span for span in told.named("send") if span.status.status_code is StatusCode.ERROR]
    quiet = [span for span in failed if not span.events]

    assert (len(failed), len(quiet)) == (6, 3)
    assert {span.status.description for span in quiet} == {None}
    assert "secret" in "".join(span.to_json() for span in failed)
    assert "secret" not in "".join(span.to_json() for span in quiet)


def test_baggage(told: Told) -> None:
    """A call in a task takes the baggage of the request along, with each `propagation_style`."""
    calls = [carrier for carrier in sent if "baggage" in carrier]

    assert {carrier["baggage"] for carrier in calls} == {"tenant=acme"}
    # Two tasks of each style: both in the request's trace, or each in one of its own.
    assert len({carrier["traceparent"].split("-")[1] for carrier in calls}) == 1 + 2 + 2


def test_a_message_of_somebody() -> None:
    """A worker takes no more than five values from a header, and keeps an exception in if it was told to."""
    header = {"queued_at": 1, "record_exception": True, "task_hook": "os.system", "broker": "redis://there"}

    _, queued_at, options = read({"traced_tasks": json.dumps(header)}, TaskTracing(record_exception=False))
    assert (queued_at, options) == (1, TaskTracing(record_exception=False))


def test_refused() -> None:
    """A wrong `broker` is not in the error; a wrong value of another option is."""
    with pytest.raises(TypeError) as refused:
        TaskTracing(broker="redis://:secret@there")
    assert "secret" not in str(refused.value)
    with pytest.raises(ValidationError, match="secret"):
        TaskTracing(brokr="redis://:secret@there")  # type: ignore[call-arg]


def test_record() -> None:
    """A record keeps what was given to its task, and the error of a lost one shows the arguments."""
    with pytest.raises(AssertionError, match=str(ARGUMENT)), record_tasks() as tasks:
        TracedBackgroundTask(notify, ARGUMENT)
    assert tasks[0].args == (ARGUMENT,)
