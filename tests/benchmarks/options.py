"""What options of its own add to a task: `with_options(...).add_task(...)` against `add_task(...)`."""

import sys
from time import perf_counter
from typing import Any

from opentelemetry.trace import Link, SpanContext

from tests.benchmarks.bare import notify
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from traced_tasks._background import TracedBackgroundTasks

ADD_TASK = "add_task(notify, 42)"
TASKS = 100  # of a queue

OPTIONS: dict[str, dict[str, Any]] = {
    "a name": {"span_name": "send receipt"},
    "a name, attributes, links": {
        "span_name": "send receipt",
        "attributes": {"tier": "gold"},
        "links": [Link(SpanContext(1, 1, is_remote=True))],
    },
}


def block(options: dict[str, Any] | None) -> Block:
    """Return the measurement: the seconds to add a task, with options or without."""

    async def measure() -> float:
        tasks = TracedBackgroundTasks()
        started_at = perf_counter()
        if options is None:
            for _ in range(TASKS):
                tasks.add_task(notify, 42)
        else:
            for _ in range(TASKS):
                tasks.with_options(**options).add_task(notify, 42)
        seconds = perf_counter() - started_at
        await tasks()  # or they would be reported as dropped
        return seconds / TASKS

    return measure


async def measure(options: str, rounds: int) -> Rounds:
    """Measure some options in this process."""
    return await interleave({ADD_TASK: block(None), SUBJECT: block(OPTIONS[options])}, rounds)


def row(options: str, processes: Processes) -> Row:
    """Return the row of the table for some options."""
    figure = Figure(ADD_TASK, "at most", 5e-6, difference=True)
    return Row(f"with_options: {options}", "µs", processes, [figure])


if __name__ == "__main__":
    report(measure(sys.argv[1], int(sys.argv[2])))
