"""A failing task: what its span tells, what becomes of the queue, and what goes on to the server."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from httpx import AsyncClient
from opentelemetry import _logs as logs
from opentelemetry import context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.trace import StatusCode
from pydantic import ValidationError

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks._options import OnError
from traced_tasks.testing import record_tasks

ContinuingTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(on_error="continue"))]


class PaymentError(Exception):
    pass


def fail() -> None:
    raise PaymentError("card 4242 refused")


async def async_fail() -> None:
    raise ValueError("card 4242 refused")


@pytest.mark.parametrize(
    ("func", "error", "error_type"),
    [(fail, PaymentError, "tests.behaviour.test_failures.PaymentError"), (async_fail, ValueError, "ValueError")],
)
async def test_failure(
    app: FastAPI,
    client: AsyncClient,
    spans: Spans,
    func: Callable[[], None],
    error: type[Exception],
    error_type: str,
) -> None:
    """A failing task has an error status, its exception's class and the exception, which goes on to the server."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(func)

    with pytest.raises(error, match="card 4242 refused"):
        await client.get("/")

    (span,) = spans.tasks()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == f"{error.__name__}: card 4242 refused"
    assert span.attributes is not None
    assert span.attributes["error.type"] == error_type
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "card 4242 refused"
    assert "raise" in str(event.attributes["exception.stacktrace"])


async def test_success_leaves_the_status_unset(spans: Spans) -> None:
    """A task that ends well leaves the span's status to the user, as OpenTelemetry asks of instrumentations."""
    await TracedBackgroundTask(print)()

    (span,) = spans()
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


async def test_cancellation(spans: Spans) -> None:
    """A task that is cut short has an error status and its event loop's class of cancellation."""
    tasks = TracedBackgroundTasks()
    tasks.add_task(anyio.sleep_forever)

    with anyio.move_on_after(0.01) as scope:
        await tasks()

    assert scope.cancelled_caught
    (span,) = spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] in ("asyncio.exceptions.CancelledError", "trio.Cancelled")


async def test_http_exception_in_a_task(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A task's `HTTPException` is on its span as it was, also where Starlette hides it behind an error of its own."""

    def forbid() -> None:
        raise HTTPException(403, "not yours")

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(forbid)

    with pytest.raises((RuntimeError, HTTPException), match=r"response already started|not yours"):
        await client.get("/")

    (span,) = spans.tasks()
    assert (span.attributes or {})["error.type"] == "fastapi.exceptions.HTTPException"
    assert span.status.description == "HTTPException: 403: not yours"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """The log records that a fresh global logger provider gets."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(logs._internal, "_LOGGER_PROVIDER", provider)
    yield lambda: [record.log_record for record in exporter.get_finished_logs()]
    provider.shutdown()


@pytest.mark.parametrize(
    ("opt_in", "event", "record"),
    [
        (None, True, False),
        ("", True, False),
        ("events", True, False),
        ("logs", False, True),
        ("logs/dup", True, True),
        ("logs/dup,logs", True, True),
        ("http, logs", False, True),
    ],
)
async def test_the_signal_of_an_exception(
    spans: Spans,
    records: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    opt_in: str | None,
    event: bool,
    record: bool,
) -> None:
    """`OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN` makes an exception a span event, a log record, or both."""
    if opt_in is None:
        monkeypatch.delenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", raising=False)
    else:
        monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", opt_in)

    with pytest.raises(PaymentError):
        await TracedBackgroundTask(fail)()

    (span,) = spans()
    assert [each.name for each in span.events] == ["exception"] * event
    assert span.status.description == "PaymentError: card 4242 refused"
    assert len(records()) == record
    for each in records():
        assert each.attributes["exception.type"].endswith("PaymentError")
        assert each.attributes["exception.message"] == "card 4242 refused"
        assert "in fail" in each.attributes["exception.stacktrace"]
        assert each.attributes["code.function.name"] == "tests.behaviour.test_failures.fail"
        assert each.severity_text == "ERROR"
        assert (each.trace_id, each.span_id) == (span.context.trace_id, span.context.span_id)


class BrokenLoggerProvider(logs.NoOpLoggerProvider):
    def get_logger(self, *args: Any, **kwargs: Any) -> logs.Logger:
        raise RuntimeError("logger broke")


async def test_a_logger_provider_that_raises(
    spans: Spans, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure whose log record cannot be made is on the span, and goes on as it is."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")
    monkeypatch.setattr(logs._internal, "_LOGGER_PROVIDER", BrokenLoggerProvider())

    with pytest.raises(PaymentError):
        await TracedBackgroundTask(fail)()

    (span,) = spans()
    assert span.status.description == "PaymentError: card 4242 refused"
    failure, warning = caplog.records
    assert failure.getMessage().startswith("The failure of the background task")
    assert warning.getMessage().startswith("The background task tests.behaviour.test_failures.fail failed with")
    assert "refused" not in caplog.text


@pytest.mark.parametrize("func", [fail, async_fail])
@pytest.mark.parametrize("opt_in", ["", "logs", "logs/dup"])
async def test_failure_without_its_message(
    spans: Spans,
    records: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    func: Callable[[], None],
    opt_in: str,
) -> None:
    """With `record_exception=False` only the exception's class leaves the process, by whatever way."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", opt_in)
    tasks = TracedBackgroundTasks(tracing=TaskTracing(record_exception=False))
    tasks.add_task(func)
    tasks.add_task(print)

    with pytest.raises(Exception, match="4242"):
        await tasks()

    failed, skipped = spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert "error.type" in (failed.attributes or {})
    assert "refused" not in failed.to_json() + skipped.to_json() + caplog.text
    assert records() == []


async def test_continue(app: FastAPI, client: AsyncClient) -> None:
    """With `on_error="continue"` every task runs, and one group carries all failures in order."""

    @app.get("/")
    async def handler(tasks: ContinuingTasks) -> None:
        tasks.add_task(print)
        tasks.add_task(fail)
        tasks.add_task(print)
        tasks.add_task(async_fail)
        tasks.add_task(print)

    with record_tasks() as tasks, pytest.raises(ExceptionGroup) as caught:
        await client.get("/")

    assert [task.outcome for task in tasks] == ["completed", "failed", "completed", "failed", "completed"]
    assert [task.exception for task in tasks if task.exception] == list(caught.value.exceptions)


async def test_one_failure_that_continues(spans: Spans) -> None:
    """A single failure comes as a group as well, so that who handles it need not tell the cases apart."""
    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
    tasks.add_task(fail)

    with pytest.raises(ExceptionGroup) as caught:
        await tasks()

    assert [type(error) for error in caught.value.exceptions] == [PaymentError]


async def test_stop_raises_the_exception_itself(spans: Spans) -> None:
    """With `on_error="stop"` the exception is the task's own, as it was raised."""
    error = ValueError("as it is")

    async def raise_it() -> None:
        raise error

    tasks = TracedBackgroundTasks()
    tasks.add_task(raise_it)

    with pytest.raises(ValueError, match="as it is") as caught:
        await tasks()

    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("options", "ran", "errors"),
    [
        (["continue", "stop"], [1], [PaymentError, PaymentError]),
        (["stop", "continue"], [], [PaymentError]),
        (["continue", "continue"], [1, 2], [PaymentError, PaymentError]),
    ],
)
async def test_each_tasks_own_option(
    spans: Spans, options: list[OnError], ran: list[int], errors: list[type[Exception]]
) -> None:
    """In a mixed queue the option of the task that fails decides, and no failure is forgotten."""
    done: list[int] = []
    tasks = TracedBackgroundTasks()
    for number, on_error in enumerate(options, start=1):
        tasks.with_options(on_error=on_error).add_task(fail)
        tasks.add_task(done.append, number)

    with pytest.raises((PaymentError, ExceptionGroup)) as caught:
        await tasks()

    assert done == ran
    raised = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert [type(error) for error in raised] == errors


async def test_a_plain_task_continues_as_its_queue(app: FastAPI, client: AsyncClient) -> None:
    """What a plain parameter queued in an opted-in request has the option of the route."""

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: ContinuingTasks) -> None:
        tasks.add_task(print)

    with record_tasks() as tasks, pytest.raises(ExceptionGroup):
        await client.get("/")

    assert [task.outcome for task in tasks] == ["failed", "completed"]


async def test_a_cancellation_always_stops(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A cancellation ends a queue that continues, and goes on untouched; the failures before it are in the log."""
    ran: list[int] = []
    tasks = TracedBackgroundTasks(tracing=TaskTracing(on_error="continue"))
    tasks.add_task(fail)
    tasks.add_task(async_fail)
    tasks.add_task(anyio.sleep_forever)
    tasks.add_task(ran.append, 1)

    with anyio.move_on_after(0.05) as scope:
        await tasks()

    assert scope.cancelled_caught
    assert ran == []
    told = [record.getMessage().partition(" after ")[0] for record in caplog.records]
    assert told[:2] == [
        "The background task tests.behaviour.test_failures.fail failed with tests.behaviour.test_failures.PaymentError",
        "The background task tests.behaviour.test_failures.async_fail failed with ValueError",
    ]
    assert len(told) == 4


async def test_the_hook(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A `task_hook` gets the started span and the task, and takes attributes from its arguments."""

    def name_the_user(span: Any, task: TracedBackgroundTask) -> None:
        assert span.is_recording()
        span.set_attribute("user.id", task.kwargs["user_id"])
        span.set_attribute("args", [task.func.__name__, *task.args])

    async def notify(channel: str, *, user_id: int) -> None: ...

    @app.get("/")
    async def handler(
        tasks: Annotated[TracedBackgroundTasks, Depends(TaskTracing(task_hook=name_the_user))],
    ) -> None:
        tasks.add_task(notify, "mail", user_id=42)

    await client.get("/")

    (span,) = spans.tasks()
    assert span.attributes is not None
    assert span.attributes["user.id"] == 42
    assert span.attributes["args"] == ("notify", "mail")


async def test_the_hook_of_a_lost_task(spans: Spans) -> None:
    """A lost task's span has the attributes of the hook as well: they tell whose task it was."""

    def name_the_user(span: Any, task: TracedBackgroundTask) -> None:
        span.set_attribute("user.id", task.args[0])

    tasks = TracedBackgroundTasks(tracing=TaskTracing(task_hook=name_the_user))
    tasks.add_task(print, 42)

    del tasks

    (span,) = spans()
    assert (span.attributes or {})["user.id"] == 42


async def test_a_hook_that_fails(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    """A hook's error is logged once, with the traceback, and harms neither the task nor its span."""

    def broken(span: Any, task: TracedBackgroundTask) -> None:
        raise KeyError("user_id")

    ran: list[int] = []
    tasks = TracedBackgroundTasks(tracing=TaskTracing(task_hook=broken))
    tasks.add_task(ran.append, 1)

    await tasks()

    assert ran == [1]
    assert [span.name for span in spans()] == ["background_task list.append"]
    (record,) = caplog.records
    assert record.getMessage() == "The task_hook of the background task list.append failed."
    assert record.exc_info is not None
    assert "in broken" in caplog.text


async def test_a_hook_that_exits(spans: Spans) -> None:
    """A hook that ends the program, rather than failing, ends the span and leaves no context behind."""

    def leave(span: Any, task: TracedBackgroundTask) -> None:
        raise SystemExit(3)

    ran: list[int] = []
    tasks = TracedBackgroundTasks(tracing=TaskTracing(task_hook=leave))
    tasks.add_task(ran.append, 1)
    before = context.get_current()

    with pytest.raises(SystemExit):
        await tasks()

    assert ran == []
    assert context.get_current() is before
    assert [(span.attributes or {})["error.type"] for span in spans()] == ["SystemExit"]


async def async_hook(span: Any, task: TracedBackgroundTask) -> None: ...


@pytest.mark.parametrize(
    "options", [{"task_hook": async_hook}, {"on_error": "retry"}, {"task_hook": "name_the_user"}, {"meter_provider": 1}]
)
def test_wrong_options(options: dict[str, Any]) -> None:
    """An unknown way to go on, a hook that cannot be called and a provider that is none are refused at import."""
    (name,) = options
    with pytest.raises(ValidationError, match=rf"(?m)^{name}$"):
        TaskTracing(**options)
