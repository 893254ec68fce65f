"""The shop of `python -m traced_tasks --serve`, as a program of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.programs import http
from traced_tasks.demo import shop
from traced_tasks.demo.shop import export_catalogue, serve_shop


@contextmanager
def run_shop() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the program, and read the address that it prints."""
    command = [sys.executable, "-m", "traced_tasks", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process, line.split("open: ")[1].split(" ")[0]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_shop() as (_, url):
        yield url


def shown(url: str, path: str, wanted: Callable[[list[Any]], bool]) -> list[Any]:
    """The spans of the newest request to a path, as soon as they are as wanted."""
    until = time.monotonic() + 20
    spans: list[Any] = []
    while time.monotonic() < until:
        cards = http.get(f"{url}tasks/data").json()["cards"]
        found = [card["spans"] for card in cards if card["root"]["attributes"].get("url.path") == path]
        spans = found[0] if found else []
        if wanted(spans):
            return spans
        time.sleep(0.05)
    raise AssertionError(spans)


@pytest.mark.parametrize(
    ("path", "status", "outcomes"),
    [
        ("/checkout", 200, {"notify": "done", "update_stock": "done", "write_audit": "done"}),
        ("/checkout/linked", 200, {"notify": "done"}),
        ("/checkout/worker", 200, {"notify": "sent"}),
        (
            "/signup",
            200,
            {"send_mail": "done", "charge_card": "failed", "update_crm": "skipped", "write_audit": "skipped"},
        ),
        (
            "/signup/continue",
            200,
            {"send_mail": "done", "charge_card": "failed", "update_crm": "done", "write_audit": "done"},
        ),
        ("/coupon", 409, {"write_audit": "dropped"}),
        ("/welcome", 200, {"<lambda>": "never_awaited"}),
        ("/catalogue/export", 200, {"export_catalogue": None}),
    ],
)
def test_each_button(url: str, path: str, status: int, outcomes: dict[str, str | None]) -> None:
    """The start page has a button for each request, and the page shows what becomes of its tasks."""
    assert f'data-path="{path}"' in http.get(url).text

    def found(spans: list[Any]) -> dict[str, str | None]:
        return {span["name"].split(" ", 1)[1]: span["outcome"] for span in spans if span["kind"] != "span"}

    assert http.post(f"{url.rstrip('/')}{path}").status_code == status
    assert found(shown(url, path, lambda spans: found(spans) == outcomes)) == outcomes


def test_ctrl_c_ends_it() -> None:
    """Ctrl-C closes the shop at once, whatever runs in it, and without a traceback."""
    with run_shop() as (process, url):
        http.post(f"{url}catalogue/export")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


@pytest.mark.parametrize("missing", [[], ["taskiq"]])
def test_with_and_without_a_worker(monkeypatch: pytest.MonkeyPatch, missing: list[str]) -> None:
    """Where there is nothing to run a worker with, the shop has all but the button for that, and it ends as cleanly."""
    monkeypatch.setattr(shop, "missing_packages", lambda: missing)
    with serve_shop() as url:
        assert ('data-path="/checkout/worker" disabled' in http.get(url).text) is bool(missing)
        assert http.post(f"{url}/checkout/worker").status_code == (404 if missing else 200)
        assert http.post(f"{url}/checkout").status_code == 200


def test_the_export_has_pages() -> None:
    """The long task has a span for each page, so that one sees it grow."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    anyio.run(export_catalogue, provider.get_tracer("shop"), 1)
    assert [span.name for span in exporter.get_finished_spans()] == ["page 1"]
