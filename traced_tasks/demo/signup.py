"""A sign-up that leaves four tasks for after its answer, of which the second fails, in three ways."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import BackgroundTasks, FastAPI
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.demo import app as apps

BEGUN: list[str] = []
"""The tasks that have begun, as they noted it themselves: what really happened, whoever tells of it."""


def plain(app: FastAPI) -> None:
    @app.post("/signup")
    async def signup(tasks: BackgroundTasks) -> dict[str, str]:
        await create_account()
        tasks.add_task(send_mail, user=42)
        tasks.add_task(charge_card, user=42)
        tasks.add_task(update_crm, user=42)
        tasks.add_task(write_audit, user=42)
        return {"status": "welcome"}


def stopping(app: FastAPI) -> None:
    @app.post("/signup")
    async def signup(tasks: TracedBackgroundTasks) -> dict[str, str]:
        await create_account()
        tasks.add_task(send_mail, user=42)
        tasks.add_task(charge_card, user=42)
        tasks.add_task(update_crm, user=42)
        tasks.add_task(write_audit, user=42)
        return {"status": "welcome"}


def continuing(app: FastAPI) -> None:
    @app.post("/signup")
    async def signup(
        tasks: Annotated[
            TracedBackgroundTasks,
            TaskTracing(on_error="continue"),
        ],
    ) -> dict[str, str]:
        await create_account()
        tasks.add_task(send_mail, user=42)
        tasks.add_task(charge_card, user=42)
        tasks.add_task(update_crm, user=42)
        tasks.add_task(write_audit, user=42)
        return {"status": "welcome"}


class PaymentError(Exception):
    """The card was refused."""


async def create_account() -> None:
    await asyncio.sleep(0.06)


async def send_mail(user: int) -> None:  # noqa: ARG001
    BEGUN.append("send_mail")
    await asyncio.sleep(0.12)


async def charge_card(user: int) -> None:
    BEGUN.append("charge_card")
    await asyncio.sleep(0.08)
    raise PaymentError(f"the card of user {user} was refused")


async def update_crm(user: int) -> None:  # noqa: ARG001
    BEGUN.append("update_crm")
    await asyncio.sleep(0.1)


async def write_audit(user: int) -> None:  # noqa: ARG001
    BEGUN.append("write_audit")
    await asyncio.sleep(0.06)


def create_app(handler: Callable[[FastAPI], None], provider: TracerProvider, meter_provider: MeterProvider) -> FastAPI:
    """Return the sign-up app, whose spans all go to `provider`.

    Args:
        handler: `plain`, `stopping` or `continuing`.
        provider: The provider of the request's and the tasks' spans.
        meter_provider: The provider of their metrics.
    """
    BEGUN.clear()
    app = apps.create_app(provider, TaskTracing(on_error="continue"), meter_provider=meter_provider)
    handler(app)
    return app


def never_ran() -> list[str]:
    """Return the tasks that never ran, in the last app that was created."""
    return [task for task in ("send_mail", "charge_card", "update_crm", "write_audit") if task not in BEGUN]
