"""The long run, on Linux: `python -m tests.load` prints what it found, and fails if anything is wrong.

The application runs in a process of its own, under real uvicorn; this one makes the requests and reads the spans. It
takes two to three minutes, and ten at the most.
"""

import asyncio
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from tests.load.client import Server, connect, serve
from tests.load.spans import Spans, violations, violations_of_many

CONNECTIONS, ROUNDS, REQUESTS, TASKS = 100, 10, 2_000, 5
WARM = 2  # rounds, until the worker threads, the caches and the allocator have what they need
MANY = {1_000: 10, 10_000: 3, 100_000: 1}  # tasks of one request, and how often


@dataclass
class Report:
    """What is found, printed as it comes."""

    wrong: list[str] = field(default_factory=list)

    def row(self, *cells: object) -> None:
        print("".join(f"{cell:>14,}" if isinstance(cell, int) else f"{cell!s:>14}" for cell in cells), flush=True)

    def check(self, what: str, measured: object, right: bool) -> None:
        print(f"  {'ok   ' if right else 'WRONG'} {what}: {measured}", flush=True)
        if not right:
            self.wrong.append(what)


def resident(server: Server) -> int:
    """Return the resident memory of the server, in bytes."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def requests(server: Server, spans: Spans, report: Report) -> None:
    """Make the requests, round by round, and check the spans and the memory after each."""
    total = ROUNDS * REQUESTS
    print(f"{total:,} requests by {CONNECTIONS} connections at once, {total * TASKS:,} tasks; tracemalloc is on\n")
    report.row("tasks", "s", "spans wrong", "RSS MB", "traced kB", "gc objects", "tasks alive")
    wrong, states = Counter[str](), list[dict[str, int]]()
    async with connect(server, CONNECTIONS) as client:
        for number in range(ROUNDS):
            started_at = monotonic()
            numbers = range(number * REQUESTS, (number + 1) * REQUESTS)
            await client.load(numbers, TASKS)
            seconds = monotonic() - started_at
            state = await client.get("/state")
            state["rss"] = resident(server)
            states.append(state)
            wrong_here = violations(spans.new(), numbers, TASKS)
            wrong += wrong_here
            report.row(
                numbers.stop * TASKS,
                f"{seconds:.1f}",
                wrong_here.total(),
                f"{state['rss'] / 1e6:.1f}",
                f"{state['traced'] / 1e3:.0f}",
                state["objects"],
                state["tasks"],
            )
    print()
    warm, last = states[WARM - 1], states[-1]
    measured = {
        name: last.get(f"background_task.{name}", 0) for name in ("duration", "queue.duration", "active", "lost")
    }
    more = (ROUNDS - WARM) * REQUESTS * TASKS
    report.check("spans lost, doubled, or of another request", dict(wrong) or 0, not wrong)
    report.check("tasks in the metrics", measured, list(measured.values()) == [total * TASKS, total * TASKS, 0, 0])
    report.check("task objects alive", max(state["tasks"] for state in states), not any(s["tasks"] for s in states))
    for name, limit in (("objects", 0.01), ("traced", 1), ("rss", 40)):
        grown = last[name] - warm[name]
        report.check(
            f"{name} grown over the last {more:,} tasks, below {limit} a task", f"{grown:,}", grown < limit * more
        )


async def many(server: Server, spans: Spans, report: Report, unit: str) -> None:
    """Make requests with many tasks each, and check that a task takes as much as one of few."""
    least: dict[int, float] = {}
    async with connect(server, 1) as client:
        for tasks, times in MANY.items():
            found = list[dict[str, Any]]()
            wrong = Counter[str]()
            for _ in range(times):
                found.append(await client.many(tasks))
                state = await client.get("/state")
                wrong += violations_of_many(spans.new(), tasks + 1)
            least[tasks] = min(each[unit] for each in found) / tasks
            shown = f"{least[tasks] * 1e6:.1f} us" if unit == "seconds" else f"{least[tasks]:.0f} bytes"
            report.row(tasks, shown, wrong.total(), state["tasks"])
            if wrong or state["tasks"]:
                report.check(f"{tasks:,} tasks of one request", {**wrong, "alive": state["tasks"]}, False)
    few, *_, most = least.values()
    report.check(f"{unit} a task, of {max(MANY):,} against {min(MANY):,}", f"{most / few:.2f} x", most < 2 * few)


async def run(report: Report) -> None:
    with TemporaryDirectory() as folder:
        with serve(Path(folder), "-X", "tracemalloc") as server:
            spans = Spans(server.spans)
            await requests(server, spans, report)
            print()
            report.row("tasks at once", "memory each", "spans wrong", "tasks alive")
            await many(server, spans, report, "bytes")
        report.check("the server says", repr(server.log.read_text()), not server.log.read_text())
    with TemporaryDirectory() as folder:
        with serve(Path(folder)) as server:
            print()
            report.row("tasks at once", "CPU each", "spans wrong", "tasks alive")
            await many(server, Spans(server.spans), report, "seconds")
        report.check("the server says", repr(server.log.read_text()), not server.log.read_text())


def main() -> int:
    """Run it.

    Returns:
        The exit code: 0, or 1 if anything is wrong.
    """
    report, started_at = Report(), monotonic()

    async def bounded() -> None:
        async with asyncio.timeout(600):
            await run(report)

    asyncio.run(bounded())
    print(f"\n{monotonic() - started_at:.0f} s, {len(report.wrong)} wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
