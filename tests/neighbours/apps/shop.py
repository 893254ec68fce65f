"""The shop that every neighbour looks at: each route once with plain background tasks and once with traced ones."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import uvicorn
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import ASGIApp

from tests.neighbours.report import Added, Report, Seen, Span
from traced_tasks import TracedBackgroundTasks

customer: ContextVar[str] = ContextVar("customer", default="nobody")
tracer = trace.get_tracer("shop")

watched: dict[str, Callable[[], Any]] = {}
"""What a program wants to know from inside each task."""

in_handler: list[Callable[[], Any]] = []
"""What a program does in each handler."""

_exporter = InMemorySpanExporter()
_report = Report(answers={}, added=[], seen=[], spans=[], logged=[], neighbour={})


def see(path: str, task: str) -> None:
    here = trace.get_current_span().get_span_context()
    _report.seen.append(
        Seen(
            path=path,
            task=task,
            span=f"{here.span_id:016x}",
            trace=f"{here.trace_id:032x}",
            baggage=dict(baggage.get_all()),
            customer=customer.get(),
            variables=sorted(variable.name for variable in copy_context()),
            watched={name: look() for name, look in watched.items()},
        )
    )


def count_visit(path: str) -> None:
    see(path, "count_visit")


async def notify(path: str) -> None:
    see(path, "notify")


def send_receipt(path: str) -> None:
    see(path, "send_receipt")


async def fail(path: str) -> None:
    see(path, "fail")
    raise LookupError("no such order")


def add(tasks: BackgroundTasks, func: Callable[[str], Any], path: str) -> None:
    here = trace.get_current_span().get_span_context()
    _report.added.append(
        Added(path=path, task=func.__name__, span=f"{here.span_id:016x}", trace=f"{here.trace_id:032x}")
    )
    tasks.add_task(func, path)


async def visit(request: Request, tasks: BackgroundTasks) -> None:
    """Queue a task where nobody knows of tracing yet."""
    add(tasks, count_visit, request.url.path)


def order(tasks: BackgroundTasks, request: Request) -> None:
    """Queue a task in the span of the request, and another, with baggage, in a span of one's own."""
    customer.set("Ada")
    for act in in_handler:
        act()
    add(tasks, send_receipt, request.url.path)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    with tracer.start_as_current_span("charge card"):
        add(tasks, notify, request.url.path)
    context.detach(token)


router = APIRouter(dependencies=[Depends(visit)])


@router.post("/plain/{number}")
async def plain(number: str, tasks: BackgroundTasks, request: Request) -> None:
    order(tasks, request)


@router.post("/traced/{number}")
async def traced(number: str, tasks: TracedBackgroundTasks, request: Request) -> None:
    order(tasks, request)


@router.post("/plain-sync/{number}")
def plain_sync(number: str, tasks: BackgroundTasks, request: Request) -> None:
    order(tasks, request)


@router.post("/traced-sync/{number}")
def traced_sync(number: str, tasks: TracedBackgroundTasks, request: Request) -> None:
    order(tasks, request)


@router.post("/plain-failing/{number}")
async def plain_failing(number: str, tasks: BackgroundTasks, request: Request) -> None:
    add(tasks, fail, request.url.path)


@router.post("/traced-failing/{number}")
async def traced_failing(number: str, tasks: TracedBackgroundTasks, request: Request) -> None:
    add(tasks, fail, request.url.path)


ORDERS = ["/plain/1", "/traced/1", "/plain-sync/1", "/traced-sync/1", "/traced/2", "/plain/2"]
FAILURES = ["/plain-failing/1", "/traced-failing/1"]


def make_app() -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


def span_processor() -> SimpleSpanProcessor:
    return SimpleSpanProcessor(_exporter)


def record_spans() -> None:
    """What a user of OpenTelemetry does: set a tracer provider."""
    provider = TracerProvider()
    provider.add_span_processor(span_processor())
    trace.set_tracer_provider(provider)


Post = Callable[..., Awaitable[str]]


async def send(port: int, path: str, header: str = "x-test: 1", method: str = "POST") -> str:
    """Make a request, not with a client that the neighbour may have patched, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (f"{method} {path} HTTP/1.1", "Host: shop", "Connection: close", "Content-Length: 0", header)
    writer.write("\r\n".join((*head, "", "")).encode())
    answer = (await reader.read()).decode()
    writer.close()
    if method == "POST":
        _report.answers[path] = int(answer.split()[1])
    return answer


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[Post]:
    """Serve an app with uvicorn, and give what posts to it and waits until the background tasks are done."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    serving = asyncio.create_task(server.serve([listener]))

    async def post(*paths: str, **request: str) -> str:
        answer = ""
        for path in paths:
            answer = await send(listener.getsockname()[1], path, **request)
            while server.server_state.tasks:  # noqa: ASYNC110  # it has no event for that
                await asyncio.sleep(0.005)
        return answer

    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    try:
        yield post
    finally:
        server.should_exit = True
        await serving


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _report.logged.append(f"{record.name}: {record.getMessage()}")


logging.captureWarnings(True)
logging.getLogger().addHandler(_Log(logging.WARNING))


async def use(app: ASGIApp, *paths: str) -> None:
    async with serving(app) as post:
        await post(*paths)


def recorded() -> list[Span]:
    """The spans that OpenTelemetry's SDK recorded."""
    return [
        Span(
            scope=span.instrumentation_scope.name if span.instrumentation_scope else "",
            name=span.name,
            kind=span.kind.name,
            trace=f"{span.context.trace_id:032x}",
            id=f"{span.context.span_id:016x}",
            parent=f"{span.parent.span_id:016x}" if span.parent else None,
            error=str((span.attributes or {}).get("error.type") or "") or None,
        )
        for span in _exporter.get_finished_spans()
    ]


async def all_told() -> None:
    """Wait until every task that was added has ended, and its span with it."""
    while sum(span.name.lower().startswith("background") for span in recorded()) < len(_report.added):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def report(spans: list[Span] | None = None, **neighbour: Any) -> None:
    """Print what happened."""
    _report.spans = recorded() if spans is None else spans
    _report.neighbour = neighbour
    print("\n" + _report.model_dump_json())
