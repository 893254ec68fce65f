"""The programs of docs/engines.md, each with its worker, by the commands that the page shows."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.backends.receiver import Received, receive_http
from tests.programs import DOCS, EXAMPLES, http, serve

PAGE = (DOCS / "engines.md").read_text()
COMMANDS = {
    "taskiq": "taskiq worker taskiq_shop:broker",
    "celery": "celery -A celery_shop:celery worker",
    "dramatiq": "dramatiq dramatiq_shop",
}
FASTER = {"taskiq": ["--workers", "1"], "celery": ["-c", "1", "--without-mingle"], "dramatiq": ["-p", "1"]}

Workers = list[subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def started() -> Iterator[Workers]:
    """The workers that were started. They stop at the same time, for each takes a while."""
    started: Workers = []
    yield started
    for worker in started:
        worker.wait(30)


@contextmanager
def run_worker(engine: str, started: Workers) -> Iterator[None]:
    """Start a worker by the command of the page, with one process to be faster, and tell it to stop."""
    assert f"$ {COMMANDS[engine]}\n" in PAGE
    worker = subprocess.Popen(
        [sys.executable, "-B", "-m", *shlex.split(COMMANDS[engine]), *FASTER[engine]],
        cwd=EXAMPLES / "engines",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started.append(worker)
    try:
        yield
    finally:
        worker.terminate()


def lines(received: Received, last: str) -> Iterator[str]:
    """The span with this name and those above it, as the page draws them."""
    path = [received[last]]
    while path[0].parent_span_id:
        received.wait(lambda: any(span.span_id == path[0].parent_span_id for span in received.spans))
        (parent,) = [span for span in received.spans if span.span_id == path[0].parent_span_id]
        path.insert(0, parent)
    for depth, span in enumerate(path):
        name = f"{'   ' * (depth - 1)}└─ {span.name}" if depth else span.name
        yield f"{name:<32}{Span.SpanKind.Name(span.kind).removeprefix('SPAN_KIND_')}\n"


def check(engine: str, url: str, monkeypatch: pytest.MonkeyPatch, started: Workers) -> None:
    with receive_http() as received:
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with run_worker(engine, started), serve(f"engines/{engine}_shop") as (shop, _):
            assert http.post(f"{shop}/checkout").json() == {"status": "paid"}
            drawn = "".join(lines(received, "background_task notify"))

    assert drawn == (EXAMPLES / "engines" / "tree.txt").read_text()


def test_taskiq_shop(url: str, monkeypatch: pytest.MonkeyPatch, started: Workers) -> None:
    """The span in Taskiq's worker is a child of the send, and that is a child of the request."""
    check("taskiq", url, monkeypatch, started)


def test_celery_shop(url: str, monkeypatch: pytest.MonkeyPatch, started: Workers) -> None:
    """The span in Celery's worker is a child of the send, and that is a child of the request."""
    check("celery", url, monkeypatch, started)


def test_dramatiq_shop(url: str, monkeypatch: pytest.MonkeyPatch, started: Workers) -> None:
    """The span in Dramatiq's worker is a child of the send, and that is a child of the request."""
    check("dramatiq", url, monkeypatch, started)


def test_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its broker, the application answers all the same, and its log has the line that the page shows."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    with serve("engines/dramatiq_shop") as (shop, server):
        assert http.post(f"{shop}/checkout").json() == {"status": "paid"}
        assert server.stderr
        line = next(line for line in server.stderr if "unconfirmed" in line)

    shown = (EXAMPLES / "engines" / "unconfirmed.txt").read_text()
    assert re.sub(r"[\d.]+ s\.|[-\da-f]{36}", "", line) == re.sub(r"[\d.]+ s\.|[-\da-f]{36}", "", shown)
