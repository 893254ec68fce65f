"""`context_variables=True`: a task sees every context variable as it was where the task was added."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from opentelemetry import trace

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
unset: ContextVar[str] = ContextVar("unset")

VariablesTasks = Annotated[TracedBackgroundTasks, TaskTracing(context_variables=True)]


def look(seen: list[Any]) -> None:
    seen.append((tenant.get(), trace.get_current_span().get_span_context().span_id))


async def async_look(seen: list[Any]) -> None:
    await anyio.lowlevel.checkpoint()  # needs what the event loop keeps for itself
    look(seen)


@pytest.mark.parametrize("task", [look, async_look])
@pytest.mark.parametrize("kept", [True, False])
async def test_a_sync_handlers_variables(
    app: FastAPI, client: AsyncClient, spans: Spans, task: Callable[..., Any], kept: bool
) -> None:
    """What a `def` handler sets is gone with its thread, unless the task is to see it. Its span is the current one."""
    seen: list[Any] = []

    @app.get("/")
    def handler(tasks: VariablesTasks) -> None:
        tenant.set("acme")
        tasks.with_options(context_variables=kept).add_task(task, seen)

    await client.get("/")

    (span,) = spans.tasks()
    assert seen == [("acme" if kept else "nobody", span.context.span_id)]


@pytest.mark.parametrize("task", [look, async_look])
async def test_each_task_has_its_own(spans: Spans, task: Callable[..., Any]) -> None:
    """Each task sees what was set when it was added, not what is set when it runs, and leaves all as it was."""
    seen: list[Any] = []
    tasks = TracedBackgroundTasks(tracing=TaskTracing(context_variables=True))
    for name in ("one", "two"):
        tenant.set(name)
        tasks.add_task(task, seen)
    tenant.set("three")

    await tasks()

    assert [name for name, _ in seen] == ["one", "two"]
    assert tenant.get() == "three"


async def test_what_a_task_sets(spans: Spans) -> None:
    """What a task sets itself in such a variable is gone when it has ended, also if it fails."""

    async def change() -> None:
        tenant.set("changed")
        raise ValueError

    tenant.set("acme")
    tasks = TracedBackgroundTasks(tracing=TaskTracing(context_variables=True))
    tasks.add_task(change)

    with pytest.raises(ValueError):  # noqa: PT011
        await tasks()

    assert tenant.get() == "acme"


async def test_a_variable_that_was_not_set_yet(spans: Spans) -> None:
    """A variable that is set for the first time behind `add_task` is what it is when the task runs."""
    seen: list[str] = []

    async def read() -> None:
        seen.append(unset.get("unset"))

    tasks = TracedBackgroundTasks(tracing=TaskTracing(context_variables=True))
    tasks.add_task(read)
    unset.set("set")

    await tasks()

    assert seen == ["set"]


async def test_a_coroutine_that_is_closed(spans: Spans) -> None:
    """A task that is closed where it was running leaves the variables as they were."""

    async def wait() -> None:
        await anyio.sleep(1)

    tenant.set("acme")
    tasks = TracedBackgroundTasks(tracing=TaskTracing(context_variables=True))
    tasks.add_task(wait)
    (task,) = tasks.tasks
    assert isinstance(task, TracedBackgroundTask)
    tenant.set("other")
    coroutine = task()
    coroutine.send(None)
    assert tenant.get() == "acme"

    coroutine.close()

    assert tenant.get() == "other"
