"""Dramatiq's tasks of the tests: their broker, made here and in the worker."""

import asyncio
import os
from pathlib import Path
from time import sleep as wait
from types import SimpleNamespace

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO
from opentelemetry import baggage, trace

from tests.engines.recording import record
from traced_tasks import TaskTracing
from traced_tasks.dramatiq import TracedTasksMiddleware


def add_tasks(broker: dramatiq.Broker, queue: str) -> SimpleNamespace:
    @dramatiq.actor(broker=broker, queue_name=queue)
    async def notify(user_id: int) -> None:
        trace.get_tracer("shop").start_span("work", attributes={"tenant": str(baggage.get_baggage("tenant"))}).end()

    @dramatiq.actor(broker=broker, queue_name=queue, max_retries=1, min_backoff=1, max_backoff=1)
    def fail(secret: str) -> None:
        raise ValueError(secret)

    @dramatiq.actor(broker=broker, queue_name=queue)
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)

    @dramatiq.actor(broker=broker, queue_name=queue)
    def block(seconds: float) -> None:
        wait(seconds)

    @dramatiq.actor(broker=broker, queue_name=queue)
    def touch(path: str) -> None:
        Path(path).touch()

    return SimpleNamespace(notify=notify, fail=fail, sleep=sleep, block=block, touch=touch)


def make_broker(url: str) -> RedisBroker:
    broker = RedisBroker(url=url)  # type: ignore[no-untyped-call]
    broker.add_middleware(AsyncIO())
    broker.add_middleware(TracedTasksMiddleware(tracing=TaskTracing(attributes={"place": "worker"})))
    return broker


if "TESTS_QUEUE" in os.environ:
    broker = make_broker(os.environ["TESTS_BROKER"])
    add_tasks(broker, os.environ["TESTS_QUEUE"])
    record(batch=os.environ["TESTS_QUEUE"].endswith("batch"))
