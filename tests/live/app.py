"""A shop with tasks of every outcome, some of which wait until a test lets them go on."""

import os
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from opentelemetry.sdk.trace import TracerProvider
from taskiq import BrokerMessage, InMemoryBroker

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.live import TasksPage


class PaymentError(Exception):
    pass


class Signals:
    """Where tasks wait for what a test tells them: to go on, or to stop."""

    def __init__(self) -> None:
        self._queues: dict[str, SimpleQueue[bool]] = {}
        self._over = False

    def _of(self, name: str) -> "SimpleQueue[bool]":
        return self._queues.setdefault(name, SimpleQueue())

    def goes_on(self, name: str) -> bool:
        queue = self._of(name)
        return not self._over and queue.get(timeout=60)

    def go_on(self, name: str) -> None:
        self._of(name).put(True)

    def stop(self, name: str) -> None:
        self._of(name).put(False)

    def stop_all(self) -> None:
        self._over = True
        for name in tuple(self._queues):
            self.stop(name)


class BrokerWithoutServer(InMemoryBroker):
    async def kick(self, message: BrokerMessage) -> None:
        raise ConnectionError("the broker is down")


async def notify(order: int) -> None: ...


async def send_mail(user: int) -> None: ...


async def charge_card(user: int) -> None:
    raise PaymentError("the card was declined")


async def write_audit(user: int = 0) -> None: ...


def lines() -> Iterator[str]:
    yield "never"


def create_app(provider: TracerProvider, signals: Signals, *, root_path: str = "", **options: Any) -> FastAPI:
    """Return the shop.

    Args:
        provider: The provider of all spans.
        signals: Where the tasks wait.
        root_path: Where a proxy has the application.
        options: Those of the page.
    """
    app = FastAPI(telemetry={"tracer_provider": provider}, root_path=root_path)
    app.mount("/internal/tasks", TasksPage(provider, **options))
    tracing = TaskTracing(tracer_provider=provider)
    add_shop(app, provider, tracing)
    add_exports(app, provider, tracing, signals)
    add_orders(app, provider)
    return app


def add_shop(app: FastAPI, provider: TracerProvider, tracing: TaskTracing) -> None:
    tracer = provider.get_tracer("shop")
    link = TaskTracing(tracer_provider=provider, propagation_style="link")
    none = TaskTracing(tracer_provider=provider, propagation_style="none")

    async def send_receipt(order: int) -> None:
        with tracer.start_as_current_span("render receipt"):
            pass

    @app.post("/checkout")
    async def checkout(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(send_receipt, order=42)

    @app.post("/signup")
    async def signup(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(send_mail, user=42)
        tasks.add_task(charge_card, user=42)
        tasks.add_task(write_audit, user=42)

    @app.post("/coupon")
    async def coupon(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(write_audit, user=42)
        raise HTTPException(409, "this coupon was used before")

    @app.post("/welcome")
    async def welcome(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(lambda: send_mail(user=42))
        tasks.add_task(lines)

    @app.post("/reindex")
    async def reindex(tasks: Annotated[TracedBackgroundTasks, link]) -> None:
        tasks.add_task(send_receipt, order=42)

    @app.post("/audit")
    async def audit(tasks: Annotated[TracedBackgroundTasks, none]) -> None:
        tasks.add_task(write_audit, user=42)

    @app.post("/named")
    async def named(name: str, tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.with_options(span_name=name, attributes={name: name}).add_task(send_mail, user=42)

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> JSONResponse:
        tasks = TracedBackgroundTasks(tracing=tracing)
        tasks.add_task(write_audit, user=42)
        return JSONResponse({}, 404, background=tasks)


def add_exports(app: FastAPI, provider: TracerProvider, tracing: TaskTracing, signals: Signals) -> None:
    tracer = provider.get_tracer("shop")

    def export_catalogue(name: str) -> None:
        page, goes_on = 0, True
        while goes_on:
            page += 1
            with tracer.start_as_current_span(f"page {page}"):
                goes_on = signals.goes_on(name)

    def archive(name: str) -> None:
        signals.goes_on(f"archive {name}")

    @app.post("/exports/{name}")
    async def export(name: str, tasks: Annotated[TracedBackgroundTasks, tracing]) -> int:
        tasks.add_task(export_catalogue, name)
        tasks.add_task(archive, name)
        return os.getpid()

    @app.post("/pid")
    async def pid(tasks: Annotated[TracedBackgroundTasks, tracing]) -> int:
        tasks.add_task(write_audit)
        return os.getpid()


def add_orders(app: FastAPI, provider: TracerProvider) -> None:
    for path, broker in {"/orders": InMemoryBroker(), "/orders/late": BrokerWithoutServer()}.items():
        add_order(app, path, TaskTracing(tracer_provider=provider, broker=broker), broker)


def add_order(app: FastAPI, path: str, tracing: TaskTracing, broker: InMemoryBroker) -> None:
    task: Any = broker.task("notify")(notify)

    @app.post(path)
    async def order(tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(task, order=42)


def create() -> FastAPI:
    """Return the shop of a process of its own."""
    return create_app(TracerProvider(), Signals())
