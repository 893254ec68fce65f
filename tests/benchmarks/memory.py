"""What a queue of tasks takes while it waits, and whether a task costs the same in a long queue as in a short one."""

import gc
import sys
import tracemalloc
from typing import Any

import starlette.background
from fastapi import FastAPI
from opentelemetry.context import Context

from tests.benchmarks.bare import BareTasks, notify
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from tests.benchmarks.tasks import BARE, CONFIGURATIONS, PLAIN, Queue, block, configure, context_of
from traced_tasks import TracedBackgroundTasks

QUEUES: dict[str, Queue] = {
    PLAIN: starlette.background.BackgroundTasks,
    BARE: BareTasks,
    SUBJECT: TracedBackgroundTasks,
}
CALLS: dict[str, dict[str, Any]] = {"add_task(notify, 42)": {}, 'add_task(notify, 42, tier="gold")': {"tier": "gold"}}
WAITING = 10_000  # tasks, of which the memory is taken
LENGTHS = (1, 10, 100, 1_000, 10_000)
LONGEST = 100_000


def size(queue: Queue, kwargs: dict[str, Any], tasks: int) -> Block:
    """Return the measurement of a queue's memory: the bytes of a task that waits in it."""

    async def measure() -> float:
        waiting = queue()
        gc.collect()  # which also empties Python's free lists: what comes from them is not counted
        tracemalloc.start()
        for _ in range(tasks):
            waiting.add_task(notify, 42, **kwargs)
        allocated, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await waiting()  # or they would be reported as dropped
        return allocated / tasks

    return measure


async def measure_size(call: str, tasks: int) -> Rounds:
    """Measure the memory of a call in this process. It is the same in every round."""
    return await interleave({peer: size(queue, CALLS[call], tasks) for peer, queue in QUEUES.items()}, 1)


async def measure_lengths(longest: int, rounds: int) -> Rounds:
    """Measure a task in queues of several lengths, with SDK tracing."""
    configuration = CONFIGURATIONS["tracing"]
    configure(configuration)
    context = await context_of(FastAPI(), sampled=True)
    blocks = {_named(length): _repeated(length, longest, context) for length in LENGTHS}
    return await interleave({**blocks, SUBJECT: block(TracedBackgroundTasks, notify, context, longest)}, rounds)


def _named(length: int) -> str:
    return f"{length:,} in one queue"


def _repeated(length: int, longest: int, context: Context) -> Block:
    """Return the measurement of a queue, which is used often enough to be as long as the others together."""
    once, times = block(TracedBackgroundTasks, notify, context, length), max(1, longest // 10 // length)

    async def measure() -> float:
        return sum([await once() for _ in range(times)]) / times

    return measure


def size_row(call: str, processes: Processes) -> Row:
    """Return the row of the table for the memory of a call."""
    return Row(f"memory of {call}", "B", processes, [Figure(PLAIN, "at most", 1.6)])


def lengths_row(processes: Processes) -> Row:
    """Return the row of the table for a task in a long queue: the longest against each of the others."""
    figures = [Figure(_named(length), "at most", 1.10) for length in LENGTHS]
    return Row(f"a task, {LONGEST:,} in one queue", "µs", processes, figures)


if __name__ == "__main__":
    if sys.argv[1] == "lengths":
        report(measure_lengths(int(sys.argv[2]), int(sys.argv[3])))
    else:
        report(measure_size(sys.argv[1], int(sys.argv[2])))
