import io
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console, RenderableType

from traced_tasks.demo import story


class Collector(HTTPServer):
    """A collector of OTLP over HTTP that keeps what it is sent."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.status = status
        self.received: list[ExportTraceServiceRequest] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/traces":
            self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what would make rich or OpenTelemetry behave in another way."""
    for name in os.environ:
        if name.startswith(("OTEL_", "TTY_")) or name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second chapter of the first story."""

    @contextmanager
    def shortened() -> Generator[story.Story, None, None]:
        with story.checkout_story() as told:
            yield replace(told, chapters=told.chapters[1:2])

    monkeypatch.setattr(story, "STORIES", {"checkout": shortened})


@pytest.fixture
def draw() -> Callable[..., str]:
    """Draw something as text, as a file with that encoding would have it."""

    def draw(renderable: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=file, width=width, highlight=False).print(renderable)
        file.seek(0)
        return file.read()

    return draw


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A test run in the background of a shell ignores Ctrl-C, and so would the programs that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
