import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, sync_playwright
from starlette.types import ASGIApp

from tests.live.app import Signals, create_app
from tests.programs import http
from tests.servers.serving import wait_for
from traced_tasks.demo.server import serve

# The first is Chromium without windows, and the fastest.
BROWSERS = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


class Shop:
    """The shop of `app.py` on a real server, in this process."""

    def __init__(self, url: str, provider: TracerProvider, signals: Signals) -> None:
        self.url, self.provider, self.signals = url, provider, signals
        self.page = f"{url}/internal/tasks/"

    def post(self, path: str, **params: str) -> httpx.Response:
        return http.post(self.url + path, params=params)


@pytest.fixture
def serve_shop() -> Iterator[Callable[..., Shop]]:
    """Serve the shop, with options of the page, and behind `proxy`. It ends with the test."""
    with ExitStack() as stack:

        def serve_shop(proxy: Callable[[ASGIApp], ASGIApp] = lambda app: app, **options: Any) -> Shop:
            provider, signals = TracerProvider(ALWAYS_ON, shutdown_on_exit=False), Signals()
            url = stack.enter_context(serve(proxy(create_app(provider, signals, **options))))
            stack.callback(signals.stop_all)
            return Shop(url, provider, signals)

        yield serve_shop


@pytest.fixture
def shop(serve_shop: Callable[..., Shop]) -> Shop:
    return serve_shop()


@pytest.fixture(scope="module")  # while it is there no other test of this process can run an event loop
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """One for all pages without a clock, for a new one costs more than a page, and no page stores anything."""
    return browser.new_context(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def open_page(
    browser: Browser, context: BrowserContext, serve_shop: Callable[..., Shop]
) -> Iterator[Callable[..., Page]]:
    """Open an address. At the end it is an error if a page had one, or asked anybody else."""
    faults: list[str] = []

    with ExitStack() as stack:

        def open_page(
            url: str,
            *,
            width: int = 1280,
            height: int = 900,
            clock: bool = False,
            may_fail: str | None = None,
            **media: Any,
        ) -> Page:
            # A clock, by which a test can let time pass, is one for all pages of a context.
            page = stack.enter_context((browser.new_context() if clock else context).new_page())
            if clock:
                stack.callback(page.context.close)
                page.clock.install()
            page.set_default_timeout(10_000)
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(**media)
            page.on("pageerror", lambda error: faults.append(f"error: {error}"))
            page.on("dialog", partial(_dismiss, faults))
            page.on("console", partial(_check_console, faults, may_fail))
            page.on("request", partial(_check_origin, faults, page))
            page.goto(url)
            return page

        yield open_page
    assert not faults


def _dismiss(faults: list[str], dialog: Dialog) -> None:
    faults.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def _check_console(faults: list[str], may_fail: str | None, message: ConsoleMessage) -> None:
    if may_fail is None or may_fail not in message.text:
        faults.append(f"console: {message.text}")


def _check_origin(faults: list[str], page: Page, request: Request) -> None:
    asked, own = urlsplit(request.url), urlsplit(page.url)
    if not request.is_navigation_request() and asked.scheme != "data" and asked.netloc != own.netloc:
        faults.append(f"asked {request.url}")


class Process:
    """The shop on a server in a process of its own."""

    def __init__(self, port: int, workers: int) -> None:
        self.port = port
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.live.app:create", "--port", str(port)]
        self._process = subprocess.Popen(
            [*command, "--workers", str(workers), "--log-level", "critical"], start_new_session=True
        )
        self.url = f"http://127.0.0.1:{port}"
        self.page = f"{self.url}/internal/tasks/"

    def post(self, path: str) -> httpx.Response:
        return http.post(self.url + path)

    def is_up(self) -> bool:
        assert self._process.poll() is None
        try:
            return http.get(self.page).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill it, and the workers of whom it would know nothing."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


@pytest.fixture
def start_process() -> Iterator[Callable[..., Process]]:
    """Start the shop in a process of its own. It ends with the test."""
    processes: list[Process] = []

    def start_process(port: int | None = None, workers: int = 1) -> Process:
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        processes.append(Process(port, workers))
        wait_for(processes[-1].is_up)
        return processes[-1]

    yield start_process
    for process in processes:
        process.kill()
