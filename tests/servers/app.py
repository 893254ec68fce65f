"""The application that the servers run. It writes what happens as lines of JSON to the file `RECORDS`."""

import gc
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import anyio
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from traced_tasks import TracedBackgroundTask, TracedBackgroundTasks, report_unfinished_tasks

RECORDS = Path(os.environ["RECORDS"])


def record(**line: object) -> None:
    with RECORDS.open("a") as file:  # one write, appended, so that processes can share the file
        file.write(json.dumps({"pid": os.getpid(), **line}) + "\n")


class Exporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            attributes = dict(span.attributes or {})
            record(
                span=span.name.removeprefix("background_task "),
                order=attributes.get("order"),
                error=attributes.get("error.type"),
                trace=span.context.trace_id,
                is_task=span.instrumentation_scope is not None and span.instrumentation_scope.name == "traced_tasks",
            )
        return SpanExportResult.SUCCESS


class HangingExporter(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        record(exporter="hangs")
        threading.Event().wait()
        return SpanExportResult.FAILURE


class Warnings(logging.Handler):
    def emit(self, entry: logging.LogRecord) -> None:
        record(**{"warning" if entry.levelno >= logging.WARNING else "info": entry.getMessage()})


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Exporter()))
if "HANGING" in os.environ:
    provider.add_span_processor(BatchSpanProcessor(HangingExporter(), schedule_delay_millis=1))
trace.set_tracer_provider(provider)
logging.getLogger("traced_tasks").addHandler(Warnings())
logging.getLogger("traced_tasks").setLevel(logging.INFO)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    if threads := os.environ.get("THREADS"):
        anyio.to_thread.current_default_thread_limiter().total_tokens = int(threads)
    record(lifespan="started")
    with report_unfinished_tasks() if "REPORT" in os.environ else nullcontext():
        yield {"pool": "open"}
    record(lifespan="stopped")


class Recorder:
    """Record the end of each request: its response and its tasks are through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                record(done=scope["query_string"].decode())


class PassOn(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


app = FastAPI(lifespan=lifespan)
app.add_middleware(Recorder)


def tag(span: trace.Span, task: TracedBackgroundTask) -> None:
    span.set_attribute("order", str(task.args[0]))


async def released() -> None:
    """Wait until the test releases what waits."""
    while not RECORDS.with_suffix(".go").exists():  # noqa: ASYNC110
        await anyio.sleep(0.02)


async def slow(order: str) -> None:
    record(ran="slow starts", order=order)
    await released()
    record(ran="slow", order=order)


def sync_slow(order: str) -> None:
    record(ran="slow starts", order=order)
    while not RECORDS.with_suffix(".go").exists():
        threading.Event().wait(0.02)
    record(ran="slow", order=order)


async def notify(order: str, pool: str = "") -> None:
    await anyio.sleep(0.01)
    record(ran="notify", order=order, pool=pool)


def behind(order: str) -> None:
    record(ran="behind", order=order)


def leave(order: str) -> None:
    raise SystemExit(3)


def add(queue: Any, kind: str, func: Any, *args: Any) -> None:
    (queue.with_options(task_hook=tag) if kind == "traced" else queue).add_task(func, *args)


@app.get("/collect")
async def collect() -> int:
    return gc.collect()


def routes(app: FastAPI, kind: str, queue: Any) -> None:
    @app.get(f"/{kind}/checkout")
    async def checkout(order: str, request: Request, tasks: queue) -> str:
        trace.get_current_span().set_attribute("order", order)
        add(tasks, kind, notify, order, getattr(request.state, "pool", ""))
        add(tasks, kind, behind, order)
        return order

    @app.get(f"/{kind}/slow")
    async def run_slow(order: str, tasks: queue) -> str:
        add(tasks, kind, sync_slow if order.endswith("sync") else slow, order)
        add(tasks, kind, behind, order)
        return order

    @app.get(f"/{kind}/late")
    async def late(order: str, tasks: queue) -> str:
        """Answer when it is released."""
        add(tasks, kind, notify, order)
        add(tasks, kind, behind, order)
        record(ran="handler", order=order)
        await released()
        return "x" * 100_000

    @app.get(f"/{kind}/stream")
    async def stream(order: str, tasks: queue) -> StreamingResponse:
        """Send until nobody is there, or for a while."""

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(200):
                yield b"x" * 10_000
                await anyio.sleep(0.01)

        add(tasks, kind, notify, order)
        add(tasks, kind, behind, order)
        return StreamingResponse(chunks())

    @app.get(f"/{kind}/exit")
    async def exit_(order: str, tasks: queue) -> str:
        add(tasks, kind, leave, order)
        add(tasks, kind, behind, order)
        return order


wrapped = FastAPI()
wrapped.add_middleware(PassOn)
for each in (app, wrapped):
    routes(each, "plain", BackgroundTasks)
    routes(each, "traced", TracedBackgroundTasks)
app.mount("/wrapped", wrapped)
