"""Taskiq's tasks of the tests: their broker, made here and in the worker."""

import asyncio
import os
from pathlib import Path
from time import sleep as wait
from types import SimpleNamespace

from opentelemetry import baggage, trace
from taskiq import AsyncBroker, SimpleRetryMiddleware
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware
from taskiq_redis import ListQueueBroker

from tests.engines.recording import record
from traced_tasks import TaskTracing
from traced_tasks.taskiq import TracedTasksMiddleware


def add_tasks(broker: AsyncBroker) -> SimpleNamespace:
    @broker.task("notify")
    async def notify(user_id: int) -> None:
        trace.get_tracer("shop").start_span("work", attributes={"tenant": str(baggage.get_baggage("tenant"))}).end()

    @broker.task("fail", retry_on_error=True, max_retries=2)
    async def fail(secret: str) -> None:
        raise ValueError(secret)

    @broker.task("sleep")
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @broker.task("block")
    def block(seconds: float) -> None:
        wait(seconds)

    @broker.task("touch")
    def touch(path: str) -> None:
        Path(path).touch()

    return SimpleNamespace(notify=notify, fail=fail, sleep=sleep, block=block, touch=touch)


def make_broker(queue: str, url: str, instrumented: bool) -> ListQueueBroker:
    broker = ListQueueBroker(url, queue_name=queue, socket_timeout=None)  # a worker waits longer than redis-py
    tracing = TaskTracing(attributes={"place": "worker"})
    broker.add_middlewares(SimpleRetryMiddleware(), TracedTasksMiddleware(tracing=tracing))
    if instrumented:
        broker.add_middlewares(OpenTelemetryMiddleware())
    return broker


def worker() -> ListQueueBroker:
    queue = os.environ["TESTS_QUEUE"]
    record(batch=queue.endswith("batch"))
    broker = make_broker(queue, os.environ["TESTS_BROKER"], instrumented=queue.endswith("instrumented"))
    add_tasks(broker)
    return broker
