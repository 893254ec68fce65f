"""The programs that the documentation quotes do what its pages say."""

import ast
import gc
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from types import ModuleType
from typing import Annotated, Any, get_type_hints
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest
import sqlalchemy.exc
import sqlalchemy.orm.exc
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi import Response as FastAPIResponse
from fastapi.exceptions import FastAPIError
from fastapi.params import Depends as DependsParameter
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient, Response
from opentelemetry import _logs, metrics, propagate, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.types import ASGIApp, Message

from tests.backends.receiver import receive_http
from tests.conftest import Spans, is_child, scope
from tests.programs import DOCS, EXAMPLES, http, serve
from traced_tasks import TaskTracing
from traced_tasks import TracedBackgroundTasks as TracedAnnotation
from traced_tasks._background import TracedBackgroundTasks
from traced_tasks.live import TasksPage


def load(name: str) -> ModuleType:
    """Import an example anew, under the name that it has for `uvicorn {name}:app`."""
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def send(app: ASGIApp, request: str) -> Response:
    """Make a request such as `POST /checkout`, which belongs to the current trace if there is one."""
    method, url = request.split()
    headers: dict[str, str] = {}
    propagate.inject(headers)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", headers=headers) as client:
        return await client.request(method, url)


async def call(app: ASGIApp, request: str) -> Response:
    """Make a request inside a span named `client`."""
    with trace.get_tracer("client").start_as_current_span("client"):
        return await send(app, request)


def is_in_trace_of(span: ReadableSpan, other: ReadableSpan) -> bool:
    """Whether `span` lies somewhere below another, in one trace."""
    return span.parent is not None and span.context.trace_id == other.context.trace_id


def tree(spans: list[ReadableSpan]) -> str:
    """The spans as a page draws them: a line each, its name, what made it, and the span that it is linked to."""
    names = {span.context.span_id: span.name for span in spans}
    lines = []

    def draw(parent: int | None, above: str) -> None:
        children = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
        children.sort(key=lambda span: span.start_time or 0)
        for span in children:
            last = span is children[-1]
            branch = "" if parent is None else "└─ " if last else "├─ "
            maker = scope(span).replace("opentelemetry.instrumentation.fastapi", "FastAPIInstrumentor")
            links = "".join(f", link to {names[link.context.span_id]}" for link in span.links)
            lines.append(f"{above + branch + span.name + ' ':<33}{maker}{links}\n")
            draw(span.context.span_id, above + ("" if parent is None else "   " if last else "│  "))

    draw(None, "")
    return "".join(lines)


async def all_is_let_go() -> None:
    """Wait until a worker thread has forgotten its last job, and then until the garbage is collected."""
    await anyio.to_thread.run_sync(print, "")
    gc.collect()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110
            await anyio.sleep(0.01)


def untimed(text: str) -> str:
    """A log in which every failure took as long."""
    return re.sub(r"after [\d.]+ s\.", "after a while.", text)


def shown(name: str) -> str:
    """The log that a page shows, without its times."""
    return untimed((EXAMPLES / "lost" / f"{name}.txt").read_text())


class Lost:
    """What was said of lost tasks."""

    def __init__(self, reader: InMemoryMetricReader, spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
        self.reader = reader
        self.spans = spans
        self.caplog = caplog

    def counted(self) -> dict[str, int]:
        """How often each `error.type` and function is on `background_task.lost`."""
        data: Any = self.reader.get_metrics_data()
        return {
            " ".join((point.attributes["error.type"], point.attributes["code.function.name"])): point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "background_task.lost"
            for point in metric.data.data_points
        }

    def warnings(self) -> str:
        records = [record for record in self.caplog.records if record.name == "traced_tasks"]
        assert {record.levelno for record in records} <= {logging.WARNING}
        return untimed("".join(f"{record.getMessage()}\n" for record in records))

    def tasks(self) -> list[str]:
        """Each lost task by its span; and each has its warning and is counted."""
        lost = [
            " ".join(str((span.attributes or {})[name]) for name in ("error.type", "code.function.name"))
            for span in self.spans.tasks()
            if (span.attributes or {}).get("error.type") in ("skipped", "dropped")
        ]
        said = re.findall(r"^The background task (\S+) was (\w+): ", self.warnings(), re.MULTILINE)
        assert sorted(f"{error} {name}" for name, error in said) == sorted(lost)
        assert self.counted() == {each: lost.count(each) for each in lost}
        return lost


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch, spans: Spans, caplog: pytest.LogCaptureFixture) -> Iterator[Lost]:
    gc.collect()
    caplog.clear()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", provider)
    yield Lost(reader, spans, caplog)
    provider.shutdown()


# The pages


def test_every_example_has_a_test() -> None:
    """Each program under docs/examples is run by a test named after it."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("**/test_*.py"))

    assert [
        example.stem
        for example in EXAMPLES.glob("**/*.py")
        if example.stem != "conftest"
        and not re.search(rf"^(async )?def test_{example.stem.removeprefix('test_')}", tests, re.MULTILINE)
    ] == []


def test_every_example_is_quoted_by_a_page() -> None:
    """Each file under docs/examples, program or output, stands on a page, or can be had from there."""
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))

    assert [
        example.name
        for example in EXAMPLES.glob("**/*.*")
        if example.suffix in {".py", ".txt", ".yml", ".json"}
        and f'--8<-- "{example.relative_to(DOCS).as_posix()}"' not in pages
        and f"]({example.relative_to(DOCS).as_posix()})" not in pages
    ] == []


# index.md


async def test_checkout(spans: Spans) -> None:
    """The annotation alone gives the task a span in the trace of the request."""
    response = await call(load("checkout").app, "POST /checkout")

    assert response.json() == {"status": "paid"}
    assert [span.name for span in spans.tasks()] == ["background_task notify"]
    assert is_in_trace_of(spans["background_task notify"], spans["client"])


def test_console() -> None:
    """With an exporter to the console, the program prints the spans that the page shows."""
    program = (
        "from console import app\n"
        "from fastapi.testclient import TestClient\n"
        "assert TestClient(app).post('/checkout').json() == {'status': 'paid'}\n"
    )

    run = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=EXAMPLES, capture_output=True, text=True, check=True
    )

    assert run.stdout == (EXAMPLES / "console.txt").read_text()


# live.md


def ended(url: str) -> list[dict[str, Any]]:
    """The requests that the live page of a program tells of, as soon as there is one and its tasks have ended."""
    deadline = monotonic() + 20
    cards: list[dict[str, Any]] = []
    while monotonic() < deadline:
        cards = http.get(f"{url}/tasks/data").json()["cards"]
        if cards and all(span["outcome"] for card in cards for span in card["spans"] or [{"outcome": None}]):
            return cards
        sleep(0.05)
    raise AssertionError(cards)


def test_mounted() -> None:
    """The program has its page, and the page is told of the request and of its task."""
    with serve("live/mounted") as (url, _):
        assert "<h1>Background tasks</h1>" in http.get(f"{url}/tasks", follow_redirects=True).text
        assert http.post(f"{url}/checkout").status_code == 200
        (card,) = ended(url)

    assert card["root"]["attributes"]["http.route"] == "/checkout"
    assert [(span["name"], span["outcome"]) for span in card["spans"]] == [("background_task notify", "done")]


def test_auto_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted in the lifespan, the page shows what FastAPI's own provider records, which is exported as well."""
    with receive_http() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        with serve("live/auto_configured") as (url, server):
            assert http.post(f"{url}/checkout").status_code == 200
            (card,) = ended(url)
            server.terminate()
            server.wait(20)

    assert [span["name"] for span in card["spans"]] == ["background_task notify"]
    assert "background_task notify" in [span.name for span in received.spans]


@pytest.mark.parametrize("sets_provider", [False, True])
def test_auto_configured_without_an_endpoint(monkeypatch: pytest.MonkeyPatch, sets_provider: bool) -> None:
    """Without an endpoint FastAPI sets no provider: the program does not start, unless it sets one itself."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider() if sets_provider else None)
    app = load("live/auto_configured").app

    if sets_provider:
        with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1)) as client:
            assert client.get("/tasks/data").status_code == 200
    else:
        with pytest.raises(RuntimeError, match="TasksPage shows what an SDK's tracer provider"), TestClient(app):
            pass


def test_development(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint the program has its page and exports nothing, not even at its end."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with serve("live/development") as (url, server):
        assert http.post(f"{url}/checkout").status_code == 200
        (card,) = ended(url)
        server.terminate()
        log = server.communicate()[1]

    assert [span["name"] for span in card["spans"]] == ["background_task notify"]
    assert "Application shutdown complete" in log
    assert "export" not in log


def test_development_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an endpoint it exports to there, its last spans too, and has no page."""
    with receive_http() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        with serve("live/development") as (url, server):
            assert http.get(f"{url}/tasks/").status_code == 404
            assert http.post(f"{url}/checkout").status_code == 200
            server.terminate()
            server.wait(20)

    assert [span.name for span in received.task_spans] == ["background_task notify"]


@pytest.fixture
def live(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> Spans:
    """What is recorded of a program that sets a provider itself: that of the test."""
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: provider.shutdown())
    return spans


def test_closed(live: Spans) -> None:
    """Who is not on the machine gets the line that the page shows, and so do all through a proxy."""
    app = load("live/mounted").app
    here, elsewhere = ("127.0.0.1", 1), ("192.168.0.7", 1)
    for address, host, headers in [
        (elsewhere, "localhost", {}),
        (here, "shop.example", {}),
        (here, "localhost", {"x-forwarded-for": "127.0.0.1"}),
    ]:
        answer = TestClient(app, base_url=f"http://{host}", client=address, headers=headers).get("/tasks/")
        assert answer.status_code == 403
        assert answer.text == (EXAMPLES / "live" / "closed.txt").read_text()


def test_guarded(live: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard asks everybody for the name and the password, for each file of the page, and lets nobody else in."""
    monkeypatch.setenv("TASKS_PASSWORD", "säcret")
    client = TestClient(load("live/guarded").app, base_url="http://shop.example", client=("203.0.113.9", 1))

    for path in ("/tasks/", "/tasks/page.js", "/tasks/data"):
        for wrong in (None, ("admin", "wrong"), ("", ""), ("adminé", "säcret")):
            answer = client.get(path, auth=wrong)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="tasks"')
        assert client.get(path, headers=[(b"authorization", b"\xff")]).status_code == 401
        assert client.get(path, auth=("admin", "säcret")).status_code == 200


def test_dependencies_end_at_a_mount(live: Spans) -> None:
    """A dependency of the application guards its routes, and not what is mounted."""

    def refuse() -> None:
        raise HTTPException(401)

    app = FastAPI(dependencies=[Depends(refuse)])
    app.mount("/tasks", TasksPage(allow_remote=True))
    app.get("/orders")(lambda: None)

    client = TestClient(app)
    assert [client.get(path).status_code for path in ("/orders", "/tasks/data")] == [401, 200]


def test_container(live: Spans) -> None:
    """From outside of the container it answers who asks for localhost, and no other name."""
    app = load("live/container").app

    for host, status in [("localhost:8000", 200), ("127.0.0.1:8000", 200), ("evil.example", 400)]:
        assert TestClient(app, base_url=f"http://{host}", client=("172.17.0.1", 1)).get("/tasks/").status_code == status


def look_and_ask(app: FastAPI, spans: Spans) -> None:
    """See that the page's own requests have no span, and that another one has."""
    client = TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1))
    for path in ("/tasks/", "/tasks/page.js", "/tasks/data?known=1"):
        assert client.get(path).status_code == 200
    assert spans() == []
    client.get("/nothing")
    assert spans() != []


def test_excluded(live: Spans) -> None:
    """FastAPI's own telemetry leaves the page's requests out, and no others."""
    look_and_ask(load("live/excluded").app, live)


def test_excluded_contrib(live: Spans) -> None:
    """So does `FastAPIInstrumentor`."""
    app = load("live/excluded_contrib").app
    try:
        look_and_ask(app, live)
    finally:
        FastAPIInstrumentor.uninstrument_app(app)


def test_grafana(live: Spans) -> None:
    """The link to Grafana is a query for the trace, in the form that Explore takes."""
    client = TestClient(load("live/grafana").app, base_url="http://localhost", client=("127.0.0.1", 1))
    trace_url = client.get("/tasks/data").json()["trace_url"]

    address = urlsplit(trace_url.replace("{trace_id}", "1" * 32))
    query = parse_qs(address.query)
    (pane,) = json.loads(query["panes"][0]).values()
    assert (address.path, query["schemaVersion"]) == ("/explore", ["1"])
    assert pane["queries"][0]["query"] == "1" * 32


@pytest.mark.parametrize("program", ["excluded", "excluded_contrib"])
def test_excluded_from_the_access_log(program: str) -> None:
    """What the page asks each second is not in uvicorn's access log, and what somebody opens is."""
    with serve(f"live/{program}", stdout=subprocess.PIPE) as (url, server):
        for path in ("/tasks/data?known=", "/tasks/"):
            assert http.get(url + path).status_code == 200
        server.terminate()
        log = server.communicate()[0]

    assert "GET /tasks/ " in log
    assert "/tasks/data" not in log


# annotation.md


async def test_handlers(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """A sync and an async task have a span alike, from a sync and from an async handler."""
    app = load("handlers").app

    await call(app, "POST /orders/7")
    await call(app, "POST /exports/2025")

    assert capsys.readouterr().out == "receipt for order 7\norders of 2025 exported, compressed: True\n"
    assert [span.name for span in spans.tasks()] == ["background_task send_receipt", "background_task write_export"]
    assert all(span.parent for span in spans.tasks())


async def test_dependency(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """What dependencies and the handler add is one queue, in order, and a plain parameter's task is traced as well."""
    await call(load("dependency").app, "DELETE /users/42")

    assert capsys.readouterr().out == "DELETE /users/42\nuser 42 removed from the index\navatar of user 42 removed\n"
    assert [span.name for span in spans.tasks()] == [
        "background_task write_audit_log",
        "background_task refresh_search",
        "background_task remove_avatar",
    ]


async def test_own_class(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """FastAPI answers a bare class with its own queue, whose tasks run without a span of ours."""
    response = await call(load("own_class").app, "POST /checkout")

    assert response.json() == {"queue": "BackgroundTasks"}
    assert capsys.readouterr().out == "mail to user 42\n"
    assert spans.tasks() == []


async def test_whole_app(spans: Spans) -> None:
    """With the dependency on the application a plain annotation's task has its span."""
    await call(load("whole_app").app, "POST /checkout")

    (task,) = spans.tasks()
    assert task.name == "background_task notify"
    assert is_in_trace_of(task, spans["client"])


# options.md


async def test_route(spans: Spans) -> None:
    """Each parameter's tasks follow its own options, on one queue."""
    await call(load("route").app, "POST /reports/2025-Q1")

    counted, rendered = spans.tasks()
    assert counted.name == "background_task count_request"
    assert is_in_trace_of(counted, spans["client"])
    assert "shop.area" not in (counted.attributes or {})
    assert rendered.name == "background_task render_report"
    assert rendered.parent is None
    assert [link.context.trace_id for link in rendered.links] == [spans["client"].context.trace_id]
    assert (rendered.attributes or {})["shop.area"] == "reports"


async def test_one_task(spans: Spans) -> None:
    """`with_options` merges attributes and replaces the name for the tasks added through it, and for no other."""
    await call(load("one_task").app, "POST /orders/7")

    receipt, restock = spans.tasks()
    assert receipt.name == "send receipt"
    assert {"shop.area": "orders", "shop.customer.tier": "gold"}.items() <= dict(receipt.attributes or {}).items()
    assert restock.name == "background_task restock"
    assert "shop.customer.tier" not in (restock.attributes or {})


async def test_provider(spans: Spans) -> None:
    """The task's span goes to the provider that its options name, as a child of the request's span all the same."""
    example = load("provider")
    jobs = Spans()
    example.jobs.add_span_processor(SimpleSpanProcessor(jobs.exporter))

    await call(example.app, "POST /index")

    (span,) = jobs()
    assert span.name == "background_task rebuild_index"
    assert span.resource.attributes["service.name"] == "shop-jobs"
    assert is_in_trace_of(span, spans["client"])
    assert spans.tasks() == []


async def test_from_arguments(spans: Spans) -> None:
    """The hook takes an attribute from the arguments of the task that has it, and of no other."""
    await call(load("from_arguments").app, "POST /orders/7")

    receipt, catalogue = spans.tasks()
    assert (receipt.attributes or {})["shop.order"] == "7"
    assert "shop.order" not in (catalogue.attributes or {})


async def test_fastapi_provider() -> None:
    """A provider that only FastAPI was given does not get the tasks' spans, unless the options name it as well."""
    example = load("fastapi_provider")
    shop = Spans()
    example.shop.add_span_processor(SimpleSpanProcessor(shop.exporter))

    await send(example.app, "POST /unseen")
    assert "POST /unseen" in [span.name for span in shop()]
    assert shop.tasks() == []

    await send(example.app, "POST /seen")
    assert is_in_trace_of(shop["background_task notify"], shop["POST /seen"])


def test_options_on_the_page() -> None:
    """Each option has its line in the tables of the page and of the README, and its entry in the API."""
    options = list(TaskTracing.model_fields)
    for page in (DOCS / "options.md", DOCS.parent / "README.md"):
        assert re.findall(r"^\| `(\w+)` \|", page.read_text(), re.MULTILINE)[: len(options)] == options
    assert re.findall(r"^ {8}- (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE) == options


@pytest.mark.parametrize("options", [{"on_error": "retry"}, {"task_hook": "tell_order"}, {"meter_provider": "console"}])
def test_refused_options(options: dict[str, Any]) -> None:
    """A value of a wrong type is refused as well."""
    with pytest.raises(ValidationError, match=next(iter(options))):
        TaskTracing(**options)


def test_misspelt_option() -> None:
    """A misspelt option is refused with the message that the page shows, where it is written."""
    with pytest.raises(ValidationError) as refused:
        TaskTracing(propagation_stile="link")  # type: ignore[call-arg]

    assert str(refused.value).startswith((EXAMPLES / "misspelt.txt").read_text())


# propagation.md


async def test_propagation(spans: Spans) -> None:
    """`child` stays in the trace, `link` starts one with a link back, `none` starts one without."""
    app = load("propagation").app

    for request in ("POST /checkout", "POST /reports", "GET /catalogue"):
        await call(app, request)

    requests = [span for span in spans() if span.name == "client"]
    child, link, none = spans.tasks()
    assert is_in_trace_of(child, requests[0])
    assert (child.kind, list(child.links)) == (SpanKind.INTERNAL, [])
    assert [linked.context.trace_id for linked in link.links] == [requests[1].context.trace_id]
    assert (link.kind, link.parent) == (SpanKind.CONSUMER, None)
    assert (none.kind, none.parent, list(none.links)) == (SpanKind.CONSUMER, None, [])
    assert len({span.context.trace_id for span in (*requests, link, none)}) == 5


async def test_propagation_and_sampling(spans: Spans) -> None:
    """Under a request that was not sampled a child is not sampled either, and a task of the other styles may be."""
    app = load("propagation").app
    spans.provider.sampler = DEFAULT_ON
    not_sampled = NonRecordingSpan(SpanContext(trace_id=1, span_id=1, is_remote=True))

    with trace.use_span(not_sampled):
        for request in ("POST /checkout", "POST /reports", "GET /catalogue"):
            await send(app, request)

    assert [span.name for span in spans.tasks()] == [
        "background_task render_report",
        "background_task refresh_catalogue",
    ]


async def test_context_variables(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """A task with `context_variables` sees what its `def` handler has set, another one does not."""
    app = load("context_variables").app

    await call(app, "POST /acme/reports")
    await call(app, "POST /acme/plain-reports")

    assert capsys.readouterr().out == "report for acme\nreport for unknown\n"


# failures.md


async def test_failure(spans: Spans) -> None:
    """A failing task's span tells its exception, or with `record_exception=False` only that exception's class."""
    example = load("failure")

    for path in ("/charge", "/charge-privately"):
        with pytest.raises(example.CardDeclinedError, match="4242"):
            await call(example.app, f"POST {path}")

    told, private = spans.tasks()
    for span in (told, private):
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "failure.CardDeclinedError"
    assert told.status.description == "CardDeclinedError: card 4242 4242 4242 4242 was declined"
    assert [event.name for event in told.events] == ["exception"]
    assert "was declined" not in private.to_json()
    assert list(private.events) == []


@pytest.mark.parametrize(("opt_in", "output"), [("", "event"), ("logs", "log"), ("logs/dup", "both")])
def test_exception_signal(opt_in: str, output: str) -> None:
    """The environment variable decides where the exception goes: into an event, into a log record, or into both."""
    program = (
        "from exception_signal import app\n"
        "from fastapi.testclient import TestClient\n"
        "TestClient(app, raise_server_exceptions=False).post('/charge')\n"
    )

    run = subprocess.run(
        [sys.executable, "-B", "-c", program],
        cwd=EXAMPLES,
        env={**os.environ, "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN": opt_in},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout == (EXAMPLES / "signals" / f"{output}.txt").read_text()


@pytest.mark.parametrize("logs", [True, False])
async def test_failure_in_the_log_of_fastapi(monkeypatch: pytest.MonkeyPatch, spans: Spans, logs: bool) -> None:
    """FastAPI's own telemetry logs the exception of a task, with its message, unless that is switched off."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(_logs._internal, "_LOGGER_PROVIDER", provider)
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs")
    example = load("failure")
    app = FastAPI(telemetry={"logs": logs})
    app.include_router(example.app.router)

    with pytest.raises(example.CardDeclinedError):
        await call(app, "POST /charge-privately")

    records = [record.log_record for record in exporter.get_finished_logs()]
    told = [(record.event_name, (record.attributes or {})["exception.message"]) for record in records]
    message = "card 4242 4242 4242 4242 was declined"
    assert told == ([("http.server.request.exception", message)] if logs else [])
    provider.shutdown()


async def test_refused_coroutine() -> None:
    """A coroutine instead of a function is refused with the message that the page shows."""

    async def notify(user_id: int) -> None: ...

    with pytest.raises(TypeError) as refused:
        TracedBackgroundTasks().add_task(notify(42))  # type: ignore[arg-type]

    assert f"{refused.value}\n" == (EXAMPLES / "refused.txt").read_text()


# logs.md


def printed(name: str, *paths: str) -> str:
    """What an example prints when each of the paths is requested, by `POST`."""
    program = (
        "import logging, sys\n"
        f"from {Path(name).name} import app\n"
        "from fastapi.testclient import TestClient\n"
        "for client in 'httpx', 'httpx2': logging.getLogger(client).disabled = True\n"
        "client = TestClient(app, raise_server_exceptions=False)\n"
        "for path in sys.argv[1:]: client.post(path)\n"
    )
    run = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", program, *paths],
        cwd=(EXAMPLES / name).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return run.stdout


def without_ids(log: str) -> str:
    """A log in which every failure took as long, and each id is the number of its first line."""
    ids = list(dict.fromkeys(re.findall(r"\b(?:[0-9a-f]{32}|[0-9a-f]{16})\b", log)))
    for number, each in enumerate(ids):
        log = log.replace(each, f"id {number}")
    return untimed(log)


def shown_log(name: str) -> str:
    return without_ids((EXAMPLES / f"logs/{name}.txt").read_text())


def test_trace_ids() -> None:
    """A filter gives the lines of the handler, of the task and of its failure one trace id, and those two one span."""
    assert without_ids(printed("logs/trace_ids", "/orders/0")) == shown_log("trace_ids")


def test_exported() -> None:
    """Exported, the lines of a task and of its failure have the trace id, and what was `extra` as attributes."""
    assert without_ids(printed("logs/exported", "/orders/0")) == shown_log("exported")


def test_with_structlog() -> None:
    """What a `def` handler binds is on the lines of its task with `context_variables`, and on no other's."""
    assert without_ids(printed("logs/with_structlog", "/orders/0", "/plain/7")) == shown_log("with_structlog")


def test_with_loguru() -> None:
    """In a block of `contextualize` a task with `context_variables` is given what is there, and no other is."""
    assert without_ids(printed("logs/with_loguru", "/orders/0", "/plain/7")) == shown_log("with_loguru")


def test_routed() -> None:
    """The lines go where the set-up says, in JSON, and those that it leaves out do not come."""
    assert without_ids(printed("logs/routed", "/orders/7")) == shown_log("routed")


def test_logs_without_a_set_up() -> None:
    """Where nobody has set up logging, Python prints the bare warnings."""
    assert untimed(printed("lost/earlier_failed", "/orders/7")) == shown("earlier_failed")


# deployment.md


async def test_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task in its request's trace goes with that; the others have the sampler of the provider that they name."""
    monkeypatch.setattr(trace, "set_tracer_provider", partial(monkeypatch.setattr, trace, "_TRACER_PROVIDER"))
    with receive_http() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        example = load("deployment/sampled")
        with trace.use_span(NonRecordingSpan(SpanContext(1, 1, is_remote=True))):
            for _ in range(40):
                await send(example.app, "POST /checkout")
                await send(example.app, "POST /reports")
        example.requests.shutdown()
        example.reports.shutdown()

    assert {span.name for span in received.spans} == {"background_task write_report"}
    assert 0 < len(received.spans) < 40


# lost.md


async def test_earlier_failed(lost: Lost, spans: Spans) -> None:
    """The task behind a failing one is skipped: a warning, a span where its own would have been, one on the counter."""
    with pytest.raises(TimeoutError):
        await call(load("lost/earlier_failed").app, "POST /orders/7")

    assert lost.tasks() == ["skipped earlier_failed.send_receipt"]
    assert lost.warnings() == shown("earlier_failed")
    charge, receipt = spans["background_task charge"], spans["background_task send_receipt"]
    assert is_child(receipt, spans["fastapi.endpoint"])
    assert receipt.start_time is not None
    assert charge.start_time is not None
    assert charge.end_time is not None
    assert receipt.end_time is not None
    assert receipt.start_time < charge.start_time < charge.end_time < receipt.end_time
    assert receipt.status.status_code is StatusCode.ERROR
    assert f"was skipped: {receipt.status.description}.\n" in lost.warnings()
    assert set(receipt.attributes or {}) == {"code.function.name", "error.type"}


@pytest.mark.parametrize("setup", ["fastapi", "contrib"])
async def test_earlier_failed_beside_others(lost: Lost, spans: Spans, setup: str) -> None:
    """Of a plain task that never ran, neither FastAPI's own telemetry nor `FastAPIInstrumentor` says anything."""
    example = load("lost/earlier_failed")
    app = FastAPI(telemetry={"tracing": setup == "fastapi"})

    @app.post("/skipped")
    async def skipped(tasks: BackgroundTasks) -> None:
        tasks.add_task(example.charge, 7)
        tasks.add_task(example.send_receipt, 7)

    @app.post("/dropped")
    async def dropped(tasks: BackgroundTasks) -> None:
        tasks.add_task(example.send_receipt, 7)
        raise HTTPException(409)

    if setup == "contrib":
        FastAPIInstrumentor.instrument_app(app)
    try:
        with pytest.raises(TimeoutError):
            await send(app, "POST /skipped")
        await send(app, "POST /dropped")
    finally:
        if setup == "contrib":
            FastAPIInstrumentor.uninstrument_app(app)
    await all_is_let_go()

    tasks = [span for span in spans() if re.search("background.?task", span.name, re.IGNORECASE)]
    assert [span.name for span in tasks] == [
        "fastapi.background_task" if setup == "fastapi" else "BackgroundTask charge"
    ]
    assert "send_receipt" not in "".join(span.to_json() for span in spans())
    assert lost.caplog.records == []
    assert "send_receipt" not in str(lost.reader.get_metrics_data())


async def test_go_on(lost: Lost, spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """With `continue` the tasks behind a failure run, and the server gets one group of all failures."""
    with pytest.raises(ExceptionGroup) as failed:
        await call(load("lost/go_on").app, "POST /orders/7")

    assert f"{failed.value!r}\n" == (EXAMPLES / "lost" / "go_on.txt").read_text()
    assert capsys.readouterr().out == "goods of order 7 taken from stock\n"
    assert [(span.attributes or {}).get("error.type") for span in spans.tasks()] == [
        None,
        "TimeoutError",
        None,
        "ConnectionError",
    ]
    assert lost.tasks() == []


async def test_go_on_stops(lost: Lost) -> None:
    """A failing task of the other kind stops the queue all the same: each task's own option decides."""
    with pytest.raises(ValueError, match="there is no order 0"):
        await call(load("lost/go_on").app, "POST /orders/0")

    assert lost.tasks() == ["skipped go_on.send_receipt", "skipped go_on.restock", "skipped go_on.count_order"]


async def test_earlier_cancelled(lost: Lost, spans: Spans) -> None:
    """The task that is cut short has failed, and the one behind it is skipped."""
    with anyio.move_on_after(0.5):
        await call(load("lost/earlier_cancelled").app, "POST /exports")

    assert lost.tasks() == ["skipped earlier_cancelled.send_link"]
    cancelled = (spans["background_task write_export"].attributes or {})["error.type"]
    assert cancelled in ("asyncio.exceptions.CancelledError", "trio.Cancelled")
    assert lost.warnings().replace(str(cancelled), "asyncio.exceptions.CancelledError") == shown("earlier_cancelled")


def test_earlier_cancelled_by_the_server() -> None:
    """A server that stops cancels the task that still runs, and warns of the one behind it."""
    with serve("lost/earlier_cancelled", "--timeout-graceful-shutdown", "1") as (url, server):
        assert http.post(f"{url}/exports").status_code == 200
        server.terminate()
        log = server.communicate()[1]

    assert shown("earlier_cancelled") in untimed(log)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_never_awaited(lost: Lost, spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """The decorated task's function was called, its body never ran, and that is said."""
    await call(load("lost/never_awaited").app, "POST /orders/7")
    gc.collect()

    assert capsys.readouterr().out == "send_receipt starts\n"
    assert lost.warnings() == shown("never_awaited")
    assert lost.counted() == {"never_awaited never_awaited.send_receipt": 1}
    task = spans["background_task send_receipt"]
    assert (task.attributes or {})["error.type"] == "never_awaited"
    assert task.status.status_code is StatusCode.ERROR


async def test_handler_raises(lost: Lost, spans: Spans) -> None:
    """The tasks of a handler that raises are dropped, be the exception an `HTTPException` or not."""
    app = load("lost/handler_raises").app

    response = await call(app, "POST /sold-out/7")
    assert response.status_code == 409
    assert lost.tasks() == ["dropped handler_raises.count_attempt"]
    assert lost.warnings() == shown("handler_raises")
    assert is_in_trace_of(spans["background_task count_attempt"], spans["POST /sold-out/{product_id}"])

    with pytest.raises(LookupError):
        await call(app, "POST /broken/7")
    await all_is_let_go()
    assert lost.tasks() == ["dropped handler_raises.count_attempt"] * 2


async def test_dependency_of_a_refused_request(lost: Lost) -> None:
    """What a dependency added is dropped when the request is refused for its parameters."""
    response = await call(load("dependency").app, "DELETE /users/nobody")

    assert response.status_code == 422
    assert lost.tasks() == ["dropped dependency.write_audit_log"]


@pytest.mark.parametrize("path", ["/returned", "/raised"])
async def test_error_response(lost: Lost, spans: Spans, path: str) -> None:
    """An error that is a response with a background keeps its tasks."""
    response = await call(load("lost/error_response").app, f"POST {path}")
    await all_is_let_go()

    assert (response.status_code, response.json()) == (409, {"detail": "sold out"})
    assert [(span.name, span.status.is_ok) for span in spans.tasks()] == [("background_task count_attempt", True)]
    assert lost.tasks() == []


async def test_own_background(lost: Lost, spans: Spans) -> None:
    """The queue is dropped beside a background of the response's own, and runs where it is that background."""
    app = load("lost/own_background").app

    await call(app, "POST /orders/7/cancel")
    await all_is_let_go()
    assert lost.tasks() == ["dropped own_background.refund"]
    assert spans["background_task restock"].status.is_ok

    spans.exporter.clear()
    await call(app, "POST /orders/7/return")
    assert [(span.name, span.status.is_ok) for span in spans.tasks()] == [
        ("background_task refund", True),
        ("background_task restock", True),
    ]


@pytest.mark.parametrize(("path", "saved"), [("/forgets", ""), ("/saves", "saved: hello\n")])
async def test_websocket_route(
    lost: Lost, spans: Spans, capsys: pytest.CaptureFixture[str], path: str, saved: str
) -> None:
    """The tasks of a websocket route are dropped, unless the route runs them itself."""
    received: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}]

    async def receive() -> Message:
        return received.pop(0)

    async def send_nothing(message: Message) -> None: ...

    websocket = {"type": "websocket", "path": path, "headers": [], "query_string": b""}
    await load("lost/websocket_route").app(websocket, receive, send_nothing)

    assert capsys.readouterr().out == saved
    assert lost.tasks() == ([] if saved else ["dropped websocket_route.save"])
    assert spans["background_task save"].status.is_ok is bool(saved)


async def test_thrown_away(lost: Lost) -> None:
    """A queue by hand that no response was given is dropped."""
    response = await call(load("lost/thrown_away").app, "POST /newsletter?email=ada@example.org")

    assert response.json() == {"status": "subscribed"}
    assert lost.tasks() == ["dropped thrown_away.send_welcome"]


async def test_after_yield(lost: Lost, spans: Spans) -> None:
    """What a dependency adds behind its `yield` is too late."""
    await call(load("lost/after_yield").app, "DELETE /users/7")
    await all_is_let_go()

    assert lost.tasks() == ["dropped after_yield.write_audit_log"]
    assert [span.status.is_ok for span in spans.tasks()] == [True, False]


async def test_hidden(lost: Lost, spans: Spans) -> None:
    """Where the server sees Starlette's `RuntimeError`, the task's span has the `HTTPException` that was raised."""
    with pytest.raises(RuntimeError) as hidden:
        await call(load("lost/hidden").app, "POST /charge")

    assert f"{type(hidden.value).__name__}: {hidden.value}\n" == (EXAMPLES / "lost" / "hidden.txt").read_text()
    span = spans["background_task charge"]
    assert (span.attributes or {})["error.type"] == "fastapi.exceptions.HTTPException"
    assert span.status.description == "HTTPException: 402: card 4242 was declined"
    assert [event.name for event in span.events] == ["exception"]


# metrics.md


@pytest.fixture(scope="module")
def scraped() -> list[str]:
    """The lines of a scrape of the program, behind what the page has done with it."""
    with serve("scrape") as (url, _):
        for path in ("orders/1", "orders/2", "orders/0", "exports"):
            http.post(f"{url}/{path}")
        deadline = monotonic() + 20
        lines: list[str] = []
        receipts = (
            'background_task_duration_seconds_count{code_function_name="scrape.send_receipt",error_type=""} 2.0\n'
        )
        while receipts not in lines or not any(line.startswith("background_task_lost_total{") for line in lines):
            assert monotonic() < deadline
            sleep(0.1)
            lines = http.get(f"{url}/metrics").text.splitlines(keepends=True)
    return lines


def test_scrape(scraped: list[str]) -> None:
    """A scrape of the program has the lines that the page shows, whatever the durations are."""

    def shape(lines: str) -> str:
        return re.sub(r"(_sum\{.*\}|_bucket\{.*le=\"0.25\"\}) .*", r"\1", lines)

    lines = [line for line in scraped if "background_task" in line]
    charged = 'background_task_duration_seconds_bucket{code_function_name="scrape.charge",error_type="",'
    plain = [line for line in lines if "_bucket" not in line]
    buckets = [line for line in lines if line.startswith(charged)]
    assert sorted(shape("".join(plain)).splitlines()) == sorted(
        shape((EXAMPLES / "scrape" / "plain.txt").read_text()).splitlines()
    )
    boundaries = re.findall(r'le="([\d.]+)"', "".join(buckets))
    assert f"\n{', '.join(boundaries)}\n" in (DOCS / "metrics.md").read_text()
    assert shape("".join(buckets)) == shape((EXAMPLES / "scrape" / "buckets.txt").read_text())


ALERTS = EXAMPLES / "alerts"


def queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return panels + [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]


def test_names_of_alerts_and_dashboard(scraped: list[str]) -> None:
    """The alerts, their tests and the dashboard have names of metrics and labels that are in a scrape, and all five."""
    samples = [line for line in scraped if line.startswith("background_task")]
    names = {sample.partition("{")[0] for sample in samples}
    labels = {label for sample in samples for label in re.findall(r'(\w+)="', sample)}
    dashboard = "\n".join(queries(json.loads((ALERTS / "dashboard.json").read_text())))
    expressions = (ALERTS / "rules.yml").read_text(), (ALERTS / "rules_test.yml").read_text(), dashboard

    for text in expressions:
        named = set(re.findall(r"(?<!:)\bbackground_task_\w+", text))
        assert named <= names
        assert {re.sub(r"_(bucket|count|total)$", "", name) for name in named} == {
            "background_task_active",
            "background_task_duration_seconds",
            "background_task_lost",
            "background_task_queue_duration_seconds",
            "background_task_waiting",
        }
        by = {label for listed in re.findall(r"\bby \(([^)]*)\)", text) for label in listed.split(", ")}
        matched = set(re.findall(r'(\w+)(?:=~|!=|=)"', text)) - {"alertname", "alertstate", "severity"}
        assert by | matched <= labels | {"job", "instance"}


def test_every_alert_has_a_test() -> None:
    """Each alert is seen to fire, and to be silent, in the tests for promtool; and the page tells what it means."""
    alerts = re.findall(r"- alert: (\w+)", (ALERTS / "rules.yml").read_text())
    tests = (ALERTS / "rules_test.yml").read_text()
    page = (DOCS / "metrics.md").read_text()

    assert alerts
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +eval_time: .*\n +exp_alerts:\n +- exp_labels", tests)
        assert re.search(rf"alertname: {alert}\n +eval_time: .*\n +exp_alerts: \[\]", tests)
        assert f"| `{alert}` |" in page


def test_dashboard() -> None:
    """The dashboard is one that Grafana imports: whole, for any data source, with panels beside each other."""
    dashboard = json.loads((ALERTS / "dashboard.json").read_text())
    source = {"type": "prometheus", "uid": "${datasource}"}

    assert dashboard["title"]
    assert re.fullmatch(r"[\w-]{8,40}", dashboard["uid"])
    assert isinstance(dashboard["schemaVersion"], int)
    assert "id" not in dashboard
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert {name for query in queries(dashboard) for name in re.findall(r"\$(\w+)", query)} == {
        "__rate_interval",
        *(variables.keys() - {"datasource"}),
    }

    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


def test_picture_of_the_dashboard() -> None:
    """The picture has the panels of the dashboard, in their order."""
    picture = (DOCS / "pictures" / "dashboard.svg").read_text()
    panels = json.loads((ALERTS / "dashboard.json").read_text())["panels"]

    assert re.findall(r'<g class="panel">\n<text[^>]*>([^<]+)<', picture) == [panel["title"] for panel in panels]


# responses.md


async def test_responses(spans: Spans) -> None:
    """A task and a queue made by hand run after the response that carries them, each task with its span."""
    app = load("responses").app

    await call(app, "POST /newsletter?email=ada@example.org")
    await call(app, "POST /orders/7/cancel")

    welcome, refund, restock = spans.tasks()
    assert welcome.name == "background_task send_welcome"
    assert refund.name == "background_task refund"
    assert restock.name == "background_task restock"
    assert "shop.area" not in (welcome.attributes or {})
    assert (refund.attributes or {})["shop.area"] == (restock.attributes or {})["shop.area"] == "orders"
    assert all(span.parent for span in spans.tasks())


async def test_plain_starlette(spans: Spans) -> None:
    """In an app of Starlette alone a task made by hand is a child of the span that is current in the endpoint."""
    response = await call(load("plain_starlette").app, "POST /photos/3")

    assert response.json() == {"photo": 3}
    assert is_child(spans["background_task resize"], spans["client"])


async def test_middleware(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a middleware in plain ASGI a task starts when the server has taken the whole response, and not before."""
    example = load("middleware")
    happened: list[str] = []
    taken = 0

    async def count_download(name: str) -> None:
        happened.append(name)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def take(message: Message) -> None:
        nonlocal taken
        if message["type"] == "http.response.start":
            assert (b"x-shop", b"main street") in message["headers"]
            return
        await anyio.wait_all_tasks_blocked()  # whatever else could run now has run
        taken += len(message["body"])
        happened.append("taken" if not message.get("more_body") else "part")

    monkeypatch.setattr(example, "count_download", count_download)
    scope = {"type": "http", "method": "GET", "path": "/catalogue", "headers": [], "query_string": b""}
    await example.app(scope, receive, take)

    assert taken == 20_000_000
    assert happened == ["taken", "catalogue"]
    assert [span.name for span in spans.tasks()] == ["background_task count_download"]


# testing.md


def run_tests(tmp_path: Path, *command: str, **others: str) -> tuple[bool, str]:
    """Run tests of the page by a command of the page, and return whether they pass, and what was printed."""
    folder = tmp_path / "testing"  # elsewhere, for pytest would take the settings of this repository
    shutil.copytree(EXAMPLES / "testing", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in others.items():
        (folder / f"{name}.py").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode == 0, run.stdout + run.stderr


def results(output: str, file: str) -> list[str]:
    """What became of each test of a file."""
    return re.findall(rf"^([A-Z]+) {file}\.py::", output, re.MULTILINE)


def error_in(output: str, test: str) -> str:
    """The lines in which pytest shows the error of a test."""
    (shown,) = re.findall(rf"(?ms)^_+ {test} _+$(.*?)(?=^[_=]+ )", output)
    return "".join(f"{line}\n" for line in re.findall(r"^E {7}(.*)$", shown, re.MULTILINE))


@pytest.fixture(scope="module")
def tests_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest prints of the page's tests, with each warning an error."""
    files = "test_shop.py", "test_spans.py", "loses.py", "not_one.py"
    _, output = run_tests(tmp_path_factory.mktemp("page"), "pytest", "-rpfE", "-W", "error", *files)
    return output


def test_shop(tests_of_the_page: str) -> None:
    """The page's tests of its program pass as they are printed."""
    assert results(tests_of_the_page, "test_shop") == ["PASSED"] * 6, tests_of_the_page


def test_with_unittest(tmp_path: Path) -> None:
    """The page's test without pytest passes."""
    passed, output = run_tests(tmp_path, "unittest", "test_with_unittest.py")
    assert passed, output
    assert "Ran 1 test" in output


def test_spans(tests_of_the_page: str) -> None:
    """The page's test of spans passes."""
    assert results(tests_of_the_page, "test_spans") == ["PASSED"], tests_of_the_page


def test_loses(tests_of_the_page: str) -> None:
    """A test that loses a task fails, in its own line, with the message that the page shows."""
    assert results(tests_of_the_page, "loses") == ["FAILED"], tests_of_the_page
    assert error_in(tests_of_the_page, "test_sold_out") == (EXAMPLES / "testing" / "loses.txt").read_text()
    assert "\nloses.py:8: AssertionError\n" in tests_of_the_page


def test_not_one(tests_of_the_page: str) -> None:
    """A test that asks for a task that was not added fails, in its own line, with the message that the page shows."""
    assert results(tests_of_the_page, "not_one") == ["FAILED"], tests_of_the_page
    assert error_in(tests_of_the_page, "test_an_order_is_counted") == (EXAMPLES / "testing" / "not_one.txt").read_text()
    assert "\nnot_one.py:11: AssertionError\n" in tests_of_the_page


PLAIN = (
    (EXAMPLES / "testing" / "shop.py")
    .read_text()
    .replace("from traced_tasks import", "from fastapi import BackgroundTasks as")
)


def test_loses_in_a_route_that_has_not_opted_in(tmp_path: Path) -> None:
    """The test that loses a task passes if the route has not opted in, and one that asks for the task fails."""
    _, output = run_tests(tmp_path, "pytest", "-rpfE", "loses.py", "not_one.py", shop=PLAIN)
    assert results(output, "loses") == ["PASSED"], output
    assert results(output, "not_one") == ["FAILED"], output
    assert error_in(output, "test_an_order_is_counted") == (
        "AssertionError: no tasks of count_attempt were added, not one. There was: nothing. (Only routes that opt in "
        "are recorded.)\n"
    )


@pytest.mark.parametrize("disabled", [False, True])
def test_exporter_in_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: bool) -> None:
    """The lines of the page in `conftest.py` keep an exporter, which the application sets up at import, silent."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:1/v1/traces")  # nobody listens
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # not before the exit
    (lines,) = re.findall(r"(?s)    ```python\n(    import os\n.*?)    ```", (DOCS / "testing.md").read_text())
    test = (
        "from fastapi.testclient import TestClient\n"
        "from reported import app, write_export\n"
        "from traced_tasks.testing import record_tasks\n"
        "def test_export():\n"
        "    with record_tasks() as tasks:\n"
        "        TestClient(app).post('/exports?seconds=0')\n"
        "    assert tasks.one(write_export).outcome == 'completed'\n"
    )

    passed, output = run_tests(
        tmp_path,
        *("pytest", "-W", "error", "test_export.py"),
        reported=(EXAMPLES / "deployment" / "reported.py").read_text(),
        test_export=test,
        conftest=textwrap.dedent(lines) if disabled else "",
    )

    assert passed, output
    assert ("Max retries exceeded" in output or "Failed to export" in output) is not disabled, output


# how-it-works.md


async def test_captured(spans: Spans) -> None:
    """What a sync handler attached to the context is there in the task, which lies below the span it was added in."""
    await call(load("captured").app, "POST /orders/7")

    task = spans["background_task send_receipt"]
    assert is_child(task, spans["charge card"])
    assert (task.attributes or {})["shop.tenant"] == "acme"


def only_fastapi(example: ModuleType) -> FastAPI:
    app: FastAPI = example.app
    return app


def only_contrib(example: ModuleType) -> FastAPI:
    app = FastAPI(telemetry={"tracing": False})
    app.include_router(example.router)
    FastAPIInstrumentor.instrument_app(app)
    return app


def both(example: ModuleType) -> FastAPI:
    app: FastAPI = example.app
    FastAPIInstrumentor.instrument_app(app)
    return app


@pytest.mark.parametrize("route", ["plain", "traced", "linked"])
@pytest.mark.parametrize(("setup", "drawn"), [(only_fastapi, "fastapi"), (only_contrib, "contrib"), (both, "contrib")])
async def test_neighbours(spans: Spans, setup: Callable[[ModuleType], FastAPI], drawn: str, route: str) -> None:
    """Beside other telemetry the span tree of each route is the one that the page shows."""
    app = setup(load("neighbours"))
    try:
        await send(app, f"POST /{route}")
    finally:
        if setup in (only_contrib, both):
            FastAPIInstrumentor.uninstrument_app(app)

    assert tree(spans()) == (EXAMPLES / "trees" / f"{drawn}-{route}.txt").read_text()


async def test_neighbours_that_are_absent(spans: Spans) -> None:
    """Without other telemetry a plain task has no span, and a traced one is the root of a trace, with no link."""
    app = FastAPI(telemetry={"tracing": False})
    app.include_router(load("neighbours").router)

    for route in ("plain", "traced", "linked"):
        await send(app, f"POST /{route}")

    assert [(span.name, span.parent, list(span.links)) for span in spans()] == [
        ("background_task notify", None, [])
    ] * 2


# troubleshooting.md

TROUBLESHOOTING = DOCS / "troubleshooting.md"


@pytest.mark.parametrize(
    ("setup", "printed", "shown_as"),
    [
        (None, "NonRecordingSpan(SpanContext(trace_id=0x00000000", "NonRecordingSpan(SpanContext(trace_id=0x00000000"),
        (ALWAYS_ON, '_Span(name="background_task notify"', '_Span(name="background_task notify"'),
        (ALWAYS_OFF, "NonRecordingSpan(SpanContext(trace_id=", "NonRecordingSpan("),
        ("fastapi", '_Span(name="fastapi.endpoint"', '_Span(name="fastapi.endpoint"'),
        ("contrib", '_Span(name="POST /checkout"', "another span of the request"),
    ],
)
async def test_two_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setup: Any, printed: str, shown_as: str
) -> None:
    """The two lines tell whether there is no provider, another one than the global one, no sampling, or a span."""
    provider = TracerProvider(None if isinstance(setup, str) else setup)
    app = FastAPI(telemetry={"tracer_provider": provider} if setup == "fastapi" else {})
    app.include_router(load("troubleshooting/two_prints").app.router)
    if setup in (ALWAYS_ON, ALWAYS_OFF):
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    if setup == "contrib":
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    try:
        await send(app, "POST /checkout")
    finally:
        if setup == "contrib":
            FastAPIInstrumentor.uninstrument_app(app)

    queue, span = capsys.readouterr().out.splitlines()
    assert queue == "<class 'traced_tasks._background.TracedBackgroundTasks'>"
    assert span.startswith(printed)
    if setup is ALWAYS_OFF:
        assert "0x00000000" not in span
        assert "trace_flags=0x02" in span
    assert shown_as in TROUBLESHOOTING.read_text()
    assert queue in TROUBLESHOOTING.read_text()
    provider.shutdown()


async def test_two_prints_of_a_parent_that_is_not_sampled(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """If the client has not sampled the trace, the task's span has its id and is not recorded."""
    spans.provider.sampler = DEFAULT_ON

    with trace.use_span(NonRecordingSpan(SpanContext(1, 1, is_remote=True))):
        await send(load("troubleshooting/two_prints").app, "POST /checkout")

    span = capsys.readouterr().out.splitlines()[1]
    assert span.startswith("NonRecordingSpan(SpanContext(trace_id=0x00000000000000000000000000000001")
    assert re.search("trace_flags=0x0[02]", span)


async def test_not_opted_in() -> None:
    """The queue is FastAPI's under its own annotation, beside an option that is no call, and behind a mount."""
    app = load("troubleshooting/not_opted_in").app

    queues = {path: (await send(app, f"POST {path}")).json() for path in ("/plain", "/no-call", "/traced/mounted/")}
    assert set(queues.values()) == {"fastapi.background"}
    assert (await send(app, "POST /right")).json() == "traced_tasks._background"


async def test_not_opted_in_by_a_response(spans: Spans) -> None:
    """A plain task of a response has no span of ours, whatever the dependencies of the application are."""
    app = FastAPI(dependencies=[Depends(TaskTracing())])
    notified: list[int] = []

    @app.post("/checkout")
    async def checkout() -> FastAPIResponse:
        return FastAPIResponse(background=BackgroundTask(notified.append, 42))

    await send(app, "POST /checkout")

    assert notified == [42]
    assert spans.tasks() == []


async def test_not_opted_in_by_a_helper() -> None:
    """What `get_type_hints` leaves of the annotation is a bare class, which FastAPI answers with a queue of its own."""

    class Orders:
        tasks: TracedAnnotation

    async def checkout(tasks: Any) -> str:
        return str(type(tasks).__module__)

    bare = FastAPI()
    checkout.__annotations__["tasks"] = get_type_hints(Orders, localns={**globals()})["tasks"]
    bare.post("/")(checkout)
    whole = FastAPI(dependencies=[Depends(TaskTracing())])
    whole.post("/")(checkout)

    assert (await send(bare, "POST /")).json() == "fastapi.background"
    assert (await send(whole, "POST /")).json() == "traced_tasks._background"


def test_provider_that_is_set_twice() -> None:
    """The SDK says what the page shows, and keeps the first one."""
    program = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "first = TracerProvider()\n"
        "trace.set_tracer_provider(first)\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "assert trace.get_tracer_provider() is first\n"
    )

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert run.stderr == "Overriding of current TracerProvider is not allowed\n"
    assert run.stderr in TROUBLESHOOTING.read_text()


@pytest.mark.parametrize(
    ("delay", "stop", "printed"), [("5000", "kill", False), ("5000", "terminate", True), ("50", "kill", True)]
)
def test_batch(monkeypatch: pytest.MonkeyPatch, delay: str, stop: str, printed: bool) -> None:
    """A process that is killed takes the last batch along; its end, or a short delay, exports it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", delay)
    with serve("troubleshooting/batch", stdout=subprocess.PIPE) as (url, server):
        http.post(f"{url}/checkout")
        assert server.stdout
        if delay == "50":
            assert any('"name": "background_task notify"' in line for line in server.stdout)
        getattr(server, stop)()
        output = server.communicate()[0]

    if delay != "50":
        assert ('"name": "background_task notify"' in output) is printed


@pytest.mark.parametrize("path", ["by-hand", "task-in-task", "in-plain-queue"])
async def test_twice(spans: Spans, path: str) -> None:
    """The code makes two spans of a task in each of the ways that the page shows."""
    await send(load("troubleshooting/twice").app, f"POST /{path}")

    assert tree(spans()) == (EXAMPLES / "troubleshooting" / f"{path}.txt").read_text()


def test_response_field() -> None:
    """FastAPI refuses a task where the queue is meant, with the message that the page shows."""
    with pytest.raises(FastAPIError) as refused:
        load("troubleshooting/response_field")

    assert str(refused.value).startswith((EXAMPLES / "troubleshooting" / "response_field.txt").read_text().strip())


@pytest.mark.parametrize(
    "annotations", [{"tasks": TracedAnnotation | None}, {"tasks": Depends(TaskTracing)}, {"return": TracedAnnotation}]
)
def test_response_field_in_other_ways(annotations: dict[str, Any]) -> None:
    """So it does with an optional queue, a dependency that is not called, and a handler that returns a queue."""

    async def checkout(tasks: Any) -> Any: ...

    if isinstance(annotations.get("tasks"), DependsParameter):
        annotations = {"tasks": Annotated[BackgroundTasks, annotations["tasks"]]}
    checkout.__annotations__ = {"tasks": TracedAnnotation, **annotations}

    with pytest.raises(FastAPIError, match="Invalid args for response field"):
        FastAPI().post("/checkout")(checkout)


async def test_options_as_a_body() -> None:
    """The class of the options as an annotation is a body, which a request does not have."""
    app = FastAPI()

    @app.post("/checkout")
    async def checkout(tasks: TaskTracing) -> None: ...

    assert (await send(app, "POST /checkout")).status_code == 422


def messages(path: Path) -> Iterator[str]:
    """The texts of a module that somebody reads: its strings, but for docstrings and what `--help` says."""
    program = ast.parse(path.read_text())
    others: set[ast.AST] = set()
    for node in ast.walk(program):
        match node:
            case ast.Expr() | ast.keyword(arg="help") | ast.Assign(targets=[ast.Name("_DESCRIPTION" | "_EPILOG")]):
                others.add(node.value)
            case ast.JoinedStr():
                others.update(node.values)
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in node.values)
            case ast.Constant(value=str(text)) if node not in others:
                yield text
            case _:
                pass


def test_every_message_is_found() -> None:
    """Somebody who searches these pages for the beginning of a message of the package finds it."""
    pages = [*DOCS.glob("*.md"), *EXAMPLES.glob("**/*.txt")]
    text = re.sub(r"[`\s]+", " ", " ".join(page.read_text() for page in pages))
    sought: dict[str, str] = {}
    package = DOCS.parent / "traced_tasks"
    for path in (*package.glob("*.py"), *package.glob("live/*.py")):
        for message in messages(path):
            words = message.replace("`", "").split()[:14]
            if sum("%" not in word for word in words) >= 3:
                sought[message] = re.sub(r"%[\d\\.]*[a-z]", ".{1,80}?", re.escape(" ".join(words).strip(" .:,")))

    assert [message for message, pattern in sought.items() if not re.search(pattern, text)] == []
    assert len(sought) > 50


# migration.md


@pytest.mark.parametrize("neighbour", ["fastapi", "contrib"])
async def test_one_route(spans: Spans, capsys: pytest.CaptureFixture[str], neighbour: str) -> None:
    """Beside each other, a migrated route has our span for its task, and another one has the span that it had."""
    app = FastAPI(telemetry={"tracing": neighbour == "fastapi"})
    app.include_router(load("migration/one_route").app.router)
    if neighbour == "contrib":
        FastAPIInstrumentor.instrument_app(app)
    try:
        await send(app, "POST /orders")
        await send(app, "POST /checkout")
    finally:
        if neighbour == "contrib":
            FastAPIInstrumentor.uninstrument_app(app)

    before = "fastapi.background_task" if neighbour == "fastapi" else "BackgroundTask notify"
    names = [span.name for span in spans() if re.search("background.?task", span.name, re.IGNORECASE)]
    assert names == [before, "background_task notify"]
    assert capsys.readouterr().out == "mail to user 42\n" * 2


async def test_plain_tasks_without_spans_of_operations(spans: Spans) -> None:
    """Without FastAPI's spans of operations a plain task has none, and a traced one has ours."""
    app = FastAPI(telemetry={"operation_spans": False})
    app.include_router(load("migration/one_route").app.router)

    await send(app, "POST /orders")
    await send(app, "POST /checkout")

    assert [span.name for span in spans()] == ["POST /orders", "POST /checkout", "background_task notify"]


@pytest.mark.parametrize("setup", [only_fastapi, only_contrib])
async def test_table_of_the_migration(spans: Spans, setup: Callable[[ModuleType], FastAPI]) -> None:
    """The columns of the table are what the spans of the neighbours' program have."""
    rows = [line.split(" | ") for line in (DOCS / "migration.md").read_text().splitlines() if line.startswith("| ")]
    column = 1 if setup is only_fastapi else 2
    table = {cells[0].strip("| "): (cells[column], cells[3]) for cells in rows if len(cells) == 4}
    example: Any = load("neighbours")

    async def notify(user_id: int) -> None:
        raise ValueError("no such user")

    app = setup(example)
    try:
        await send(app, "POST /plain")
        await send(app, "POST /traced")
        example.notify = notify
        for route in ("plain", "traced"):
            with pytest.raises(ValueError, match="no such user"):
                await send(app, f"POST /{route}")
    finally:
        if setup is only_contrib:
            FastAPIInstrumentor.uninstrument_app(app)

    names = {span.context.span_id: span.name for span in spans()}
    tasks = [span for span in spans() if re.search("background.?task", span.name, re.IGNORECASE)]
    for position, (task, failed) in enumerate(zip(tasks[:2], tasks[2:], strict=True)):
        assert task.parent is not None
        assert f"`{task.name}`" in table["name"][position]
        assert f"`{scope(task)}`" in table["scope"][position]
        assert f"`{task.kind.name}`" in table["kind"][position]
        beside = "beside FastAPI's own " if setup is only_fastapi else "beside contrib "
        parent = names[task.parent.span_id]
        parent = "the request" if parent.startswith("POST ") else f"`{parent}`"
        assert (beside * position) + parent in table["parent"][position]
        attributes = ", ".join(f"`{name}`" for name in task.attributes or {}) or "none"
        assert attributes == table["attributes"][position].strip(" |")
        failure = table["a failure"][position]
        assert failed.status.status_code is StatusCode.ERROR
        assert (failed.status.description is not None) is ("with the message" in failure)
        assert [event.name for event in failed.events] == ["exception"] * ("exception" in failure)
        assert ("error.type" in (failed.attributes or {})) is ("error.type" in failure)


@pytest.mark.parametrize("setup", [only_fastapi, only_contrib])
async def test_wait_for_a_thread(spans: Spans, setup: Callable[[ModuleType], FastAPI]) -> None:
    """The wait of a `def` task for a thread is in the span of the others, and not in ours."""
    example: Any = load("neighbours")
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    app = setup(example)
    try:
        for route in ("plain", "traced"):
            go_on = threading.Event()
            example.notify = lambda _, go_on=go_on: go_on.wait(20)
            async with anyio.create_task_group() as requests:
                for _ in range(2):
                    requests.start_soon(send, app, f"POST /{route}")
                await until(lambda: limiter.statistics().tasks_waiting == 1)
                go_on.set()
    finally:
        limiter.total_tokens = tokens
        if setup is only_contrib:
            FastAPIInstrumentor.uninstrument_app(app)

    tasks = [span for span in spans() if re.search("background.?task", span.name, re.IGNORECASE)]
    assert len(tasks) == 4
    for (first, second), waits in ((tasks[:2], True), (tasks[2:], False)):
        assert ((second.start_time or 0) < (first.end_time or 0)) is waits


@pytest.mark.parametrize("back", [False, True])
async def test_one_place(tmp_path: Path, spans: Spans, capsys: pytest.CaptureFixture[str], back: bool) -> None:
    """The import decides, for all that is annotated with its name: there, and back."""
    program = (EXAMPLES / "migration" / "one_place.py").read_text()
    (line,) = re.findall(r"`(from fastapi import .*)` is the way back", (DOCS / "migration.md").read_text())
    if back:
        program = program.replace("from traced_tasks import TracedBackgroundTasks as Tasks", line)
    (tmp_path / "one_place.py").write_text(program)

    await send(load(str(tmp_path / "one_place")).app, "POST /checkout")

    assert capsys.readouterr().out == "mail to user 42\n"
    assert len(spans.tasks()) == (0 if back else 1)
    assert ("traced_tasks" in program) is not back


# database-sessions.md


@pytest.mark.parametrize("path", ["request", "function"])
async def test_order(capsys: pytest.CaptureFixture[str], path: str) -> None:
    """A session of the scope `request` is closed behind the task, one of the scope `function` before."""
    await send(load("sessions/order").app, f"POST /{path}")

    assert capsys.readouterr().out == (EXAMPLES / "sessions" / f"{path}.txt").read_text()


@pytest.mark.parametrize(("path", "reaches"), [("request", True), ("function", False)])
async def test_order_of_a_failure(path: Any, reaches: bool) -> None:
    """What a task raises comes out at the `yield` of a dependency of the scope `request`, and of no other."""
    app, seen = FastAPI(), list[str]()

    def get_session() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            seen.append(str(error))
            raise

    def fail() -> None:
        raise ValueError("of the task")

    @app.post("/", dependencies=[Depends(get_session, scope=path)])
    async def handler(tasks: TracedAnnotation) -> None:
        tasks.add_task(fail)

    with pytest.raises(ValueError, match="of the task"):
        await send(app, "POST /")

    assert seen == ["of the task"] * reaches


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    example = load("sessions/pool")
    yield example
    example.engine.dispose()


@pytest.mark.parametrize("path", ["held", "by-id", "committed"])
async def test_pool(pool: Any, path: str) -> None:
    """While a mail is sent, a second request finds no connection, unless each session gave its own back before."""

    @pool.app.post("/committed/{order_id}")  # type: ignore[untyped-decorator]
    def committed(order_id: int, tasks: TracedAnnotation, session: Annotated[Any, Depends(pool.get_session)]) -> None:
        session.get_one(pool.Order, order_id)
        session.commit()
        tasks.add_task(pool.mail_by_id, order_id)

    mails, go_on = list[str](), threading.Event()
    refused: list[str] = []

    def send_mail(address: str) -> None:
        mails.append(address)
        go_on.wait(20)

    async def request() -> None:
        try:
            await send(pool.app, f"POST /{path}/7")
        except sqlalchemy.exc.TimeoutError as error:
            refused.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}\n")

    pool.send_mail = send_mail
    async with anyio.create_task_group() as requests:
        requests.start_soon(request)
        await until(lambda: len(mails) == 1)
        requests.start_soon(request)
        await until(lambda: len(refused) == 1 or len(mails) == 2)
        go_on.set()

    told = (EXAMPLES / "sessions" / "exhausted.txt").read_text()
    assert [each.partition(" (Background on")[0] for each in refused] == [told.rstrip("\n")] * (path == "held")


async def test_pool_of_a_detached_object(pool: Any, lost: Lost) -> None:
    """An object that was expired by a commit cannot be loaded when its session is closed."""
    with pytest.raises(sqlalchemy.orm.exc.DetachedInstanceError):
        await send(pool.app, "POST /detached/7")

    assert lost.warnings() == untimed((EXAMPLES / "sessions" / "detached.txt").read_text())


@pytest.mark.parametrize("path", ["held", "by-id"])
async def test_pool_in_spans(pool: Any, spans: Spans, path: str) -> None:
    """The spans lie as the page shows them: a long session ends behind the task, short ones do not."""

    def shape(text: str) -> list[str]:
        return [line[:30].rstrip() for line in text.splitlines()]

    shown = EXAMPLES / "sessions" / f"{path}.txt"
    pool.sleep = lambda _: None
    await send(pool.app, f"POST /{path}/7")

    assert shape(timeline(spans())) == shape(shown.read_text())
    sessions = [span for span in spans() if span.name == "session"]
    (task,) = spans.tasks()
    assert len(sessions) == (1 if path == "held" else 2)
    assert [(session.end_time or 0) > (task.end_time or 0) for session in sessions] == [path == "held"] * len(sessions)


def timeline(spans: list[ReadableSpan]) -> str:
    """The spans of a trace, a line each: its name, below that of its parent, and from when to when it lasted."""
    begin = min(span.start_time or 0 for span in spans)
    depth: dict[int, int] = {}
    lines = [f"{'':<30}{'from':>5}{'to':>6}\n"]
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        depth[span.context.span_id] = depth[span.parent.span_id] + 1 if span.parent else 0
        name = "  " * depth[span.context.span_id] + span.name
        start, end = (((at or 0) - begin) / 1e6 for at in (span.start_time, span.end_time))
        lines.append(f"{name:<30}{start:>5.0f}{end:>6.0f}\n")
    return "".join(lines)
