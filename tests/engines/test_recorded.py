"""What `traced_tasks.testing` and `unfinished_tasks()` say of tasks that an engine's workers are to run."""

from typing import Any

import dramatiq
import pytest
from celery import Celery  # type: ignore[import-untyped]
from dramatiq.brokers.stub import StubBroker
from taskiq import AsyncBroker, BrokerMessage, InMemoryBroker
from taskiq.exceptions import SendTaskError
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

from traced_tasks import TaskTracing, TracedBackgroundTasks, unfinished_tasks
from traced_tasks.celery import trace_tasks
from traced_tasks.dramatiq import TracedTasksMiddleware as DramatiqMiddleware
from traced_tasks.taskiq import TracedTasksMiddleware
from traced_tasks.testing import record_tasks
from traced_tasks.unfinished import UnfinishedTask

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def notify(user_id: int) -> int:
    return 1 // user_id


async def test_a_worker_in_memory() -> None:
    """A task that a worker in this process runs is one record, that of its hand-over."""
    broker = InMemoryBroker(await_inplace=True).with_middlewares(TracedTasksMiddleware())
    task = broker.register_task(notify)
    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))

    with record_tasks() as tasks:
        queue.add_task(task, 42)
        queue.add_task(task.kiq, 0)  # its failure is the worker's
        await queue()

    assert [each.outcome for each in tasks] == ["completed", "completed"]
    assert tasks.of(task) == tasks.of(notify) == [*tasks]
    assert tasks[0].function == f"{__name__}.notify"


async def test_celery_that_runs_at_once() -> None:
    """With `task_always_eager` the record is that of the task itself: there is no hand-over."""
    app = Celery(set_as_current=False)
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    trace_tasks(app)
    task = app.task(notify, shared=False)
    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=app))

    with record_tasks() as tasks:
        queue.add_task(task, 0)
        with pytest.raises(ZeroDivisionError):
            await queue()

    assert (tasks.one(task).outcome, type(tasks[0].exception)) == ("failed", ZeroDivisionError)


async def test_a_broker_that_is_down() -> None:
    """A hand-over that fails is unconfirmed, which is a loss."""

    class Down(InMemoryBroker):
        async def kick(self, message: BrokerMessage) -> None:
            raise ConnectionError

    broker: AsyncBroker = Down()
    task: Any = broker.register_task(notify)
    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))

    with record_tasks(allow_lost=True) as tasks:
        queue.add_task(task, 42)
        with pytest.raises(SendTaskError) as info:
            await queue()

    record = tasks.one(task)
    assert (record.outcome, record.exception) == ("unconfirmed", info.value)
    assert str(record.reason).startswith("to hand it over to taskiq failed")


async def test_a_task_that_is_held() -> None:
    """A task that is held is not sent."""
    broker = InMemoryBroker()
    task = broker.register_task(notify)
    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))

    with record_tasks(held=True) as tasks:
        queue.add_task(task, 42)
        await queue()

    assert tasks.one(task).outcome == "held"


@pytest.mark.parametrize("others", [(), (OpenTelemetryMiddleware(),)])
async def test_what_runs_in_a_worker(others: tuple[OpenTelemetryMiddleware, ...]) -> None:
    """A task that a worker of this process runs is unfinished, and so is the hand-over that waits for it."""
    found: list[UnfinishedTask] = []
    broker = InMemoryBroker(await_inplace=True).with_middlewares(TracedTasksMiddleware(), *others)

    async def ask() -> None:
        found.extend(unfinished_tasks())

    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))
    queue.add_task(broker.register_task(ask))
    await queue()

    assert [task.state for task in found] == ["running", "running"]
    assert {task.function for task in found} == {f"{__name__}.test_what_runs_in_a_worker.<locals>.ask"}
    assert unfinished_tasks() == []


async def test_a_stub_broker() -> None:
    """A task that a worker of Dramatiq's runs in this process is one record, that of its hand-over."""
    broker = StubBroker(middleware=[DramatiqMiddleware()])
    actor = dramatiq.actor(broker=broker)(notify)
    queue = TracedBackgroundTasks(tracing=TaskTracing(broker=broker))

    worker = dramatiq.Worker(broker, worker_timeout=10)
    worker.start()
    with record_tasks() as tasks:
        queue.add_task(actor, 42)
        await queue()
        broker.join("default")
        worker.join()
    worker.stop()

    assert [each.outcome for each in tasks] == ["completed"]
    assert tasks.one(notify) is tasks.one(actor)
