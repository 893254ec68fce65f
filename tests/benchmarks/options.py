"""A task with options of its own: `with_options(...).add_task(...)`, and the same span written by hand."""

import sys
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext
from starlette.background import BackgroundTasks

from tests.benchmarks.bare import OwnTask, notify
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from tests.benchmarks.tasks import BARE, CONFIGURATIONS, configure, context_of
from traced_tasks import TracedBackgroundTasks

TASKS = 40  # of a queue

OPTIONS: dict[str, dict[str, Any]] = {
    "a name": {"span_name": "send receipt"},
    "a name, attributes, links": {
        "span_name": "send receipt",
        "attributes": {"tier": "gold"},
        "links": [Link(SpanContext(1, 1, is_remote=True))],
    },
}


def traced(context: Context, options: dict[str, Any]) -> Block:
    """Return the measurement of traced-tasks: the seconds of a task, from adding it until it is freed."""

    async def measure() -> float:
        token = otel_context.attach(context)
        started_at = perf_counter()
        tasks = TracedBackgroundTasks()
        for number in range(TASKS):
            tasks.with_options(**options).add_task(notify, number)
        await tasks()
        del tasks
        seconds = perf_counter() - started_at
        otel_context.detach(token)
        return seconds / TASKS

    return measure


def by_hand(context: Context, options: dict[str, Any]) -> Block:
    """Return the measurement of a task class of one's own."""

    async def measure() -> float:
        token = otel_context.attach(context)
        started_at = perf_counter()
        tasks = BackgroundTasks()
        for number in range(TASKS):
            tasks.tasks.append(OwnTask(options, notify, number))
        await tasks()
        del tasks
        seconds = perf_counter() - started_at
        otel_context.detach(token)
        return seconds / TASKS

    return measure


async def measure(chosen: str, rounds: int) -> Rounds:
    """Measure some options in this process."""
    configure(CONFIGURATIONS["tracing"])
    context = await context_of(FastAPI(), sampled=True)
    options = OPTIONS[chosen]
    return await interleave({BARE: by_hand(context, options), SUBJECT: traced(context, options)}, rounds)


def row(options: str, processes: Processes) -> Row:
    """Return the row of the table for some options."""
    return Row(f"a task, SDK tracing, with_options: {options}", "µs", processes, [Figure(BARE, "at most", 1.5)])


if __name__ == "__main__":
    report(measure(sys.argv[1], int(sys.argv[2])))
