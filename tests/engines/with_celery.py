"""Celery's tasks of the tests: their app, made here and in the worker."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from time import sleep as wait
from types import SimpleNamespace
from typing import Any

from celery import Celery, signals  # type: ignore[import-untyped]
from celery.exceptions import WorkerLostError  # type: ignore[import-untyped]
from opentelemetry import baggage, trace

from tests.engines.recording import flush, record
from traced_tasks import TaskTracing
from traced_tasks.celery import trace_tasks


def add_tasks(app: Any) -> SimpleNamespace:
    @app.task(shared=False, name="notify")  # type: ignore[untyped-decorator]
    def notify(user_id: int) -> None:
        trace.get_tracer("shop").start_span("work", attributes={"tenant": str(baggage.get_baggage("tenant"))}).end()

    @app.task(shared=False, name="fail", bind=True, max_retries=1)  # type: ignore[untyped-decorator]
    def fail(self: Any, secret: str) -> None:
        try:
            raise ValueError(secret)
        except ValueError as error:
            raise self.retry(exc=error, countdown=0) from error

    @app.task(shared=False, name="sleep")  # type: ignore[untyped-decorator]
    def sleep(seconds: float) -> None:
        wait(seconds)

    @app.task(shared=False, name="die")  # type: ignore[untyped-decorator]
    def die() -> None:
        wait(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(shared=False, name="limited", time_limit=1)  # type: ignore[untyped-decorator]
    def limited() -> None:
        wait(60)

    @app.task(shared=False, name="touch")  # type: ignore[untyped-decorator]
    def touch(path: str) -> None:
        Path(path).touch()

    @app.task(shared=False, name="die_once", acks_late=True, reject_on_worker_lost=True)  # type: ignore[untyped-decorator]
    def die_once(path: str) -> None:
        if not Path(path).exists():
            Path(path).touch()
            wait(0.2)
            os.kill(os.getpid(), signal.SIGKILL)

    @app.task(shared=False, name="begin")  # type: ignore[untyped-decorator]
    def begin(path: str) -> None:
        Path(path).touch()
        wait(60)

    @app.task(shared=False, name="cancelled")  # type: ignore[untyped-decorator]
    def cancelled() -> None:
        raise asyncio.CancelledError

    @app.task(shared=False, name="pretend")  # type: ignore[untyped-decorator]
    def pretend() -> None:
        raise WorkerLostError("of another task, whose result was waited for")

    @app.task(shared=False, name="leave")  # type: ignore[untyped-decorator]
    def leave() -> None:
        sys.exit(3)

    @app.task(shared=False, name="outer")  # type: ignore[untyped-decorator]
    def outer() -> None:
        with suppress(asyncio.CancelledError):
            cancelled.apply(throw=True)

    return SimpleNamespace(**{name: task for name, task in locals().items() if name != "app"})


def make_app(queue: str, url: str) -> Any:
    app = Celery(queue, broker=url, set_as_current=False)
    app.conf.update(task_default_queue=queue, broker_connection_retry_on_startup=True, task_ignore_result=True)
    trace_tasks(app, tracing=TaskTracing(attributes={"place": "worker"}))
    return app


if "TESTS_QUEUE" in os.environ:
    app = make_app(os.environ["TESTS_QUEUE"], os.environ["TESTS_BROKER"])
    add_tasks(app)
    record(batch=os.environ["TESTS_QUEUE"].endswith("batch"))
    signals.task_failure.connect(flush, weak=False)
    if os.environ["TESTS_QUEUE"].endswith("instrumented"):
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]
