"""The programs that the documentation quotes do what its pages say."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode
from pydantic import ValidationError
from starlette.types import ASGIApp

from tests.conftest import Spans, is_child, scope
from traced_tasks import TaskTracing
from traced_tasks.background import TracedBackgroundTasks

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"


def load(name: str) -> ModuleType:
    """Import an example anew, under the name that it has for `uvicorn {name}:app`."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
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
            lines.append(f"{above + branch + span.name:<33}{maker}{links}\n")
            draw(span.context.span_id, above + ("" if parent is None else "   " if last else "│  "))

    draw(None, "")
    return "".join(lines)


# The pages


def test_every_example_has_a_test() -> None:
    """Each program under docs/examples is run by a test named after it."""
    tests = [name for name in globals() if name.startswith("test_")]

    assert [
        example.stem
        for example in EXAMPLES.glob("**/*.py")
        if not any(name.startswith(f"test_{example.stem}") for name in tests)
    ] == []


def test_every_example_is_quoted_by_a_page() -> None:
    """Each file under docs/examples, program or output, stands on a page."""
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))

    assert [
        example.name
        for example in EXAMPLES.glob("**/*.*")
        if example.suffix in {".py", ".txt"} and f'--8<-- "{example.relative_to(DOCS).as_posix()}"' not in pages
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


async def test_wrong_import(spans: Spans, capsys: pytest.CaptureFixture[str]) -> None:
    """FastAPI answers the bare class with its own queue, whose tasks run without a span of ours."""
    response = await call(load("wrong_import").app, "POST /checkout")

    assert response.json() == {"queue": "BackgroundTasks"}
    assert capsys.readouterr().out == "mail to user 42\n"
    assert spans.tasks() == []


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
    assert "4242" not in private.to_json()
    assert list(private.events) == []


async def test_refused_coroutine() -> None:
    """A coroutine instead of a function is refused with the message that the page shows."""

    async def notify(user_id: int) -> None: ...

    with pytest.raises(TypeError) as refused:
        TracedBackgroundTasks().add_task(notify(42))  # type: ignore[arg-type]

    assert f"{refused.value}\n" == (EXAMPLES / "refused.txt").read_text()


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

    drawing = EXAMPLES / "trees" / f"{drawn}-{route}.txt"
    if not drawing.exists():
        drawing.write_text(tree(spans()))
    assert tree(spans()) == (drawing.read_text() if drawing.exists() else "")


async def test_neighbours_that_are_absent(spans: Spans) -> None:
    """Without other telemetry a plain task has no span, and a traced one is the root of a trace, with no link."""
    app = FastAPI(telemetry={"tracing": False})
    app.include_router(load("neighbours").router)

    for route in ("plain", "traced", "linked"):
        await send(app, f"POST /{route}")

    assert [(span.name, span.parent, list(span.links)) for span in spans()] == [
        ("background_task notify", None, [])
    ] * 2
