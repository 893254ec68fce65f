"""The checkout, with a task of Taskiq's that runs here, or in the worker."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from taskiq import AsyncBroker, SendTaskError

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.demo import app as apps
from traced_tasks.demo.checkout import charge, create_client
from traced_tasks.demo.tasks import add_notify, create_broker

Handler = Callable[[FastAPI, Callable[..., Any], AsyncBroker], None]


def here(app: FastAPI, notify: Callable[..., Any], _: AsyncBroker) -> None:
    @app.post("/checkout")
    async def checkout(
        tasks: Annotated[TracedBackgroundTasks, TaskTracing()],
    ) -> dict[str, str]:
        await charge()
        tasks.add_task(notify, order=42)
        return {"status": "paid"}


def there(app: FastAPI, notify: Callable[..., Any], broker: AsyncBroker) -> None:
    @app.post("/checkout")
    async def checkout(
        tasks: Annotated[TracedBackgroundTasks, TaskTracing(broker=broker)],
    ) -> dict[str, str]:
        await charge()
        tasks.add_task(notify, order=42)
        return {"status": "paid"}


def create_app(
    handler: Handler, mail_url: str, broker_url: str, provider: TracerProvider, meter_provider: MeterProvider
) -> FastAPI:
    """Return the checkout app, whose spans all go to `provider`.

    Args:
        handler: `here` or `there`.
        mail_url: Where the mail server is.
        broker_url: Where the broker is.
        provider: The provider of the request's and the tasks' spans.
        meter_provider: The provider of their metrics.
    """
    http = create_client(mail_url)
    broker = create_broker(broker_url)
    add_notify(broker, http)
    notify = broker.find_task("notify")
    assert notify is not None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        async with http:
            with suppress(SendTaskError):  # the worker knows better what became of its broker
                # An order that is before the one of the story, which has to wait for it.
                await notify.kiq(order=41)
            yield
            await broker.shutdown()

    app = apps.create_app(provider, TaskTracing(broker=broker), lifespan=lifespan, meter_provider=meter_provider)
    handler(app, notify, broker)
    return app
