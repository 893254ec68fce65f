"""A sign-up that leaves four tasks for after its answer, of which the second fails, in two ways."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, FastAPI
from opentelemetry.trace import TracerProvider

from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.demo import app as apps


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
            Depends(TaskTracing(on_error="continue")),
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
    await asyncio.sleep(0.12)


async def charge_card(user: int) -> None:
    await asyncio.sleep(0.08)
    raise PaymentError(f"the card of user {user} was refused")


async def update_crm(user: int) -> None:  # noqa: ARG001
    await asyncio.sleep(0.1)


async def write_audit(user: int) -> None:  # noqa: ARG001
    await asyncio.sleep(0.06)


def create_app(handler: Callable[[FastAPI], None], provider: TracerProvider) -> FastAPI:
    """Return the sign-up app, whose spans all go to `provider`.

    Args:
        handler: `stopping` or `continuing`.
        provider: The provider of the request's and the tasks' spans.
    """
    app = apps.create_app(provider, TaskTracing(on_error="continue"))
    handler(app)
    return app
