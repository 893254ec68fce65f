"""A task that is handed over to Taskiq, on a broker that costs nothing: the same span, written by hand around `kiq`.

`python -m tests.benchmarks.handover WHAT ROUNDS` measures one row in its process.
"""

import sys
from collections.abc import AsyncGenerator, Callable
from time import perf_counter, time
from typing import Any

from fastapi import FastAPI
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind
from starlette.background import BackgroundTask, BackgroundTasks
from taskiq import AsyncBroker, BrokerMessage
from taskiq.middlewares.opentelemetry_middleware import OpenTelemetryMiddleware

from tests.benchmarks import bare
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from tests.benchmarks.tasks import BARE, CONFIGURATIONS, configure, context_of
from traced_tasks import TaskTracing, TracedBackgroundTasks

KIQ, MIDDLEWARE, WITHOUT = "kiq", "Taskiq's OpenTelemetryMiddleware", "no broker"
TASKS = 40  # of a queue


class NullBroker(AsyncBroker):
    """A broker that takes a message and does nothing with it."""

    async def kick(self, message: BrokerMessage) -> None:
        """Do nothing."""

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """Receive nothing."""
        for _ in ():
            yield b""


async def notify(user_id: int) -> None:
    """Do nothing, and that elsewhere."""


broker, instrumented = NullBroker(), NullBroker().with_middlewares(OpenTelemetryMiddleware())
sent, sent_instrumented = broker.register_task(notify, "notify"), instrumented.register_task(notify, "notify")
tracer = trace.get_tracer("bare")


class BareTask(BackgroundTask):
    """A send in a span, with all that a worker has to know."""

    def __init__(self, func: Any, *args: Any) -> None:
        super().__init__(func.kiq, *args)
        self.task, self.context, self.queued_at = func, otel_context.get_current(), time()

    async def __call__(self) -> None:
        message_id = broker.id_generator()
        span = tracer.start_span(
            "send notify",
            self.context,
            SpanKind.PRODUCER,
            {
                "code.function.name": "tests.benchmarks.handover.notify",
                "messaging.system": "taskiq",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.message.id": message_id,
            },
        )
        token = otel_context.attach(trace.set_span_in_context(span, self.context))
        headers: dict[str, str] = {"queued_at": str(self.queued_at)}
        try:
            propagate.inject(headers)
            await self.task.kicker().with_task_id(message_id).with_labels(**headers).kiq(*self.args)
        finally:
            otel_context.detach(token)
            span.end()


class BareTasks(BackgroundTasks):
    """Starlette's queue, of sends in a span."""

    def add_task(self, func: Any, *args: Any, **kwargs: Any) -> None:
        """Queue a send in a span."""
        self.tasks.append(BareTask(func, *args))


def block(queue: Callable[[], Any], func: Any, context: Context) -> Block:
    """Return the measurement of a queue: the seconds of a task, from adding it until it is freed."""

    async def measure() -> float:
        token = otel_context.attach(context)
        started_at = perf_counter()
        tasks = queue()
        for number in range(TASKS):
            tasks.add_task(func, number)
        await tasks()
        del tasks
        seconds = perf_counter() - started_at
        otel_context.detach(token)
        return seconds / TASKS

    return measure


def queue(tracing: TaskTracing) -> Callable[[], Any]:
    return lambda: TracedBackgroundTasks(tracing=tracing)


async def measure(what: str, rounds: int) -> Rounds:
    """Measure a row's peers in this process."""
    configure(CONFIGURATIONS["tracing"])
    context = await context_of(FastAPI(), sampled=True)
    if what == "here":
        peers = {WITHOUT: TaskTracing(), SUBJECT: TaskTracing(broker=broker)}
        return await interleave(
            {name: block(queue(each), bare.notify, context) for name, each in peers.items()}, rounds
        )
    sends = {
        KIQ: (BackgroundTasks, sent.kiq),
        BARE: (BareTasks, sent),
        MIDDLEWARE: (BackgroundTasks, sent_instrumented.kiq),
        SUBJECT: (queue(TaskTracing(broker=broker)), sent),
    }
    return await interleave({name: block(each, func, context) for name, (each, func) in sends.items()}, rounds)


ROWS = {
    "sent": ("a hand-over to Taskiq, on a null broker, SDK tracing", Figure(BARE, "at most", 1.35)),
    "here": ("a function that runs here, with a broker", Figure(WITHOUT, "at most", 1.02)),
}


def row(what: str, processes: Processes) -> Row:
    """Return a row of the table."""
    title, figure = ROWS[what]
    return Row(title, "µs", processes, [figure])


if __name__ == "__main__":
    report(measure(sys.argv[1], int(sys.argv[2])))
