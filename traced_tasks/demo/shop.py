"""The shop that `--serve` runs: the requests of the stories behind buttons, and the page that shows them."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer
from taskiq import AsyncBroker

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.demo import app as apps
from traced_tasks.demo.checkout import charge, create_client, create_mail_server, notify
from traced_tasks.demo.process import Worker, missing_packages, start_worker
from traced_tasks.demo.server import serve
from traced_tasks.demo.signup import charge_card, create_account, send_mail, update_crm, write_audit
from traced_tasks.demo.tasks import add_notify, create_broker
from traced_tasks.live import TasksPage

LINK = TaskTracing(propagation_style="link")
CONTINUE = TaskTracing(on_error="continue")


def update_stock(order: int) -> None:  # noqa: ARG001
    sleep(0.25)


async def greet(user: int) -> None: ...


def create_app(mail_url: str, provider: TracerProvider, broker_url: str | None) -> FastAPI:
    """Return the shop.

    Args:
        mail_url: Where the mail server is.
        provider: The provider of all spans.
        broker_url: Where the broker of the worker is. `None`: there is none.
    """
    http = create_client(mail_url)
    broker = create_broker(broker_url) if broker_url else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with http:
            await http.get("/")  # the first call of a process takes its time
            HTTPXClientInstrumentor.instrument_client(http, tracer_provider=provider)
            yield
            if broker is not None:
                await broker.shutdown()

    to_worker = TaskTracing(broker=broker)
    app = apps.create_app(provider, LINK, CONTINUE, to_worker, lifespan=lifespan)
    app.mount("/tasks", TasksPage(provider))
    add_checkout(app, http)
    add_signup(app)
    add_export(app, provider)
    if broker is not None:
        add_worker(app, http, broker, to_worker)

    @app.get("/")
    def start() -> HTMLResponse:
        page = (Path(__file__).parent / "shop.html").read_text(encoding="utf-8")
        return HTMLResponse(page.replace("{worker}", "" if broker_url else "disabled"))

    return app


def add_checkout(app: FastAPI, http: httpx.AsyncClient) -> None:
    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> None:
        await charge()
        tasks.add_task(notify, http, order=42)
        tasks.add_task(update_stock, order=42)
        tasks.add_task(write_audit, user=42)

    @app.post("/checkout/linked")
    async def checkout_linked(tasks: Annotated[TracedBackgroundTasks, LINK]) -> None:
        await charge()
        tasks.add_task(notify, http, order=42)

    @app.post("/coupon")
    async def coupon(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(write_audit, user=42)
        raise HTTPException(409, "this coupon was used before")


def add_signup(app: FastAPI) -> None:
    def signup(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(send_mail, user=42)
        tasks.add_task(charge_card, user=42)
        tasks.add_task(update_crm, user=42)
        tasks.add_task(write_audit, user=42)

    @app.post("/signup")
    async def stopping(tasks: TracedBackgroundTasks) -> None:
        await create_account()
        signup(tasks)

    @app.post("/signup/continue")
    async def continuing(tasks: Annotated[TracedBackgroundTasks, CONTINUE]) -> None:
        await create_account()
        signup(tasks)

    @app.post("/welcome")
    async def welcome(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(lambda: greet(user=42))


async def export_catalogue(tracer: Tracer, pages: int) -> None:
    for page in range(pages):
        with tracer.start_as_current_span(f"page {page + 1}"):
            await asyncio.sleep(1)


def add_export(app: FastAPI, provider: TracerProvider) -> None:
    tracer = provider.get_tracer("shop")

    @app.post("/catalogue/export")
    async def export(tasks: TracedBackgroundTasks) -> None:
        await asyncio.sleep(0.05)
        tasks.add_task(export_catalogue, tracer, pages=12)
        tasks.add_task(write_audit, user=42)


def add_worker(app: FastAPI, http: httpx.AsyncClient, broker: AsyncBroker, to_worker: TaskTracing) -> None:
    add_notify(broker, http)
    task: Any = broker.find_task("notify")

    @app.post("/checkout/worker")
    async def checkout_worker(tasks: Annotated[TracedBackgroundTasks, to_worker]) -> None:
        await charge()
        tasks.add_task(task, order=42)


@contextmanager
def serve_shop() -> Generator[str, None, None]:
    """Serve the shop, with its mail server, and with a worker where the packages for one are installed.

    Yields:
        The URL of its start page.

    Raises:
        OSError: A port could not be opened, or the worker does not come up.
    """
    provider = TracerProvider(ALWAYS_ON, shutdown_on_exit=False)
    with ExitStack() as stack:
        mail_url = stack.enter_context(serve(create_mail_server()))
        broker_url = None
        if not missing_packages():
            worker = stack.enter_context(start_worker(mail_url))
            worker.wait_until_ready(lambda: None)
            stack.enter_context(draining(worker))
            broker_url = worker.broker_url
        yield stack.enter_context(serve(create_app(mail_url, provider, broker_url)))


@contextmanager
def draining(worker: Worker) -> Generator[None, None, None]:
    """Take what the worker tells, which would wait else."""
    over = Event()

    def drain() -> None:
        while not over.is_set():
            worker.drain()

    thread = Thread(target=drain, name="worker's spans")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
