"""What traced-tasks costs, beside its peers: `uv run --with ddtrace python -m tests.benchmarks`, in about six minutes.

It needs no network, and a machine with nothing else to do. ddtrace is measured where it is installed.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.benchmarks import handover, imports, instructions, live, memory, options, requests, tasks, throughput
from tests.benchmarks.harness import FULL, SHORT, SUBJECT, Effort, Figure, Processes, Rounds, Row, in_process

PACKAGES = (
    "fastapi",
    "starlette",
    "opentelemetry-sdk",
    "opentelemetry-instrumentation-fastapi",
    "uvicorn",
    "taskiq",
    "ddtrace",
)
SCALES = {"µs": 1e6, "ms": 1e3}

Plan = tuple[Callable[[Processes], Row], Callable[[], Rounds], int]
"""A row, what a process measures for it, and how many processes there are."""


def plan(effort: Effort) -> list[Plan]:
    """Return what is measured."""
    processes, rounds, seconds = effort
    few = max(1, processes // 2)
    plans: list[Plan] = []

    def add(row: Callable[[Processes], Row], times: int, module: str, *arguments: object) -> None:
        plans.append((row, partial(in_process, module, *arguments), times))

    for name in tasks.CONFIGURATIONS:
        if name != "ddtrace" or find_spec("ddtrace"):
            add(partial(tasks.row, name), processes, "tasks", name, rounds)
    add(requests.row, processes, "requests", rounds)
    for chosen in options.OPTIONS:
        add(partial(options.row, chosen), processes, "options", chosen, rounds // 2)
    for what in handover.ROWS:
        add(partial(handover.row, what), processes, "handover", what, rounds)
    add(live.row, processes, "live", rounds)
    for call in memory.CALLS:
        add(partial(memory.size_row, call), 1, "memory", call, memory.WAITING)
    add(memory.lengths_row, few, "memory", "lengths", min(memory.LONGEST, 1_000 * rounds), few)
    plans.append((imports.row, imports.measure, 1 + 3 * processes))
    for kind in throughput.KINDS:
        add(partial(throughput.row, kind), few, "throughput", kind, seconds, max(1, rounds // 3))
    return plans


def measure(effort: Effort, console: Console) -> list[Row]:
    """Measure all, with the processes of all rows in turns."""
    plans = plan(effort)
    measured: list[list[Rounds]] = [[] for _ in plans]
    turns = sorted((turn / times, index) for index, (_, _, times) in enumerate(plans) for turn in range(times))
    for _, index in track(turns, "measuring", console=console, transient=True):
        measured[index].append(plans[index][1]())
    return [row(processes) for (row, _, _), processes in zip(plans, measured, strict=True)]


def shown(value: float, unit: str) -> str:
    """Return a value with its unit."""
    scaled = value * SCALES.get(unit, 1)
    return f"{scaled:,.0f} {unit}" if scaled >= 200 else f"{scaled:.3g} {unit}"


def compared(row: Row, peer: str) -> tuple[str, str, bool]:
    """Return how traced-tasks compares to a peer: the value with its range, the figure, and whether it is reached."""
    figures = [figure for figure in row.figures if figure.peer == peer]
    value, least, most = row.against(peer)
    told = f"{value:.2f} ({least:.2f} to {most:.2f})"
    bounds = [f"{figure.sense} {figure.bound:.2f}" for figure in figures]
    return told, ", ".join(bounds), all(figure.reached(value) for figure in figures)


def lines(row: Row) -> list[tuple[str, str, str, str, str]]:
    """Return the lines of a row: peer, median with spread, traced-tasks against it, the figure, the verdict."""
    found = []
    for peer in [SUBJECT, *(peer for peer in row.peers if peer != SUBJECT)]:
        median = f"{shown(row.median(peer), row.unit)} ±{row.spread(peer):.0%}"
        told, bounds, reached = ("", "", True) if peer == SUBJECT else compared(row, peer)
        found.append((peer, median, told, bounds, "" if not bounds else "ok" if reached else "MISSED"))
    return found


def table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal."""
    drawn = Table("", "median", "traced-tasks against it", "figure", "", title="What a task costs")
    for row in rows:
        drawn.add_section()
        drawn.add_row(row.title, style="bold")
        for peer, median, told, bounds, verdict in lines(row):
            style = "red" if verdict == "MISSED" else "green" if verdict else None
            drawn.add_row(f"  {peer}", median, told, bounds, verdict, style=style)
    return drawn


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for the docs' page."""
    text = ["| | median | traced-tasks against it | figure |", "|---|---|---|---|"]
    for row in rows:
        text.append(f"| **{row.title}** | | | |")
        for peer, median, told, bounds, verdict in lines(row):
            text.append(f"| {peer} | {median} | {told} | {bounds}{' **missed**' * (verdict == 'MISSED')} |")
    return "\n".join([*text, "", f"Measured with {setting()}.", ""])


def setting() -> str:
    """Return the machine and the versions."""
    cpu = platform.machine()
    if (about := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in about.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    versions = [f"{package} {version(package)}" for package in PACKAGES if package != "ddtrace" or find_spec("ddtrace")]
    return f"Python {platform.python_version()}, {', '.join(versions)}; {os.cpu_count()} x {cpu}, {platform.system()}"


def load(path: Path) -> list[Row]:
    """Read rows that `--json` wrote."""
    return [
        Row(row["title"], row["unit"], row["processes"], [Figure(*figure) for figure in row["figures"]])
        for row in json.loads(path.read_text())["rows"]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table.

    Returns:
        The exit code: 0, or 1 if a figure is missed.
    """
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few seconds, to see that it runs; misses nothing")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was measured to FILE")
    parser.add_argument("--markdown", action="store_true", help="print the table of the docs' page instead")
    parser.add_argument("--from", dest="source", metavar="FILE", type=Path, help="what --json wrote; measure nothing")
    parser.add_argument("--instructions", action="store_true", help="count instructions instead, with valgrind")
    chosen = parser.parse_args(arguments)
    console = Console(stderr=True)
    if chosen.instructions:
        Console().print(instructions.table())
        return 0
    rows = load(chosen.source) if chosen.source else measure(SHORT if chosen.short else FULL, console)
    if chosen.json:
        chosen.json.write_text(json.dumps({"setting": setting(), "rows": [asdict(row) for row in rows]}))
    if chosen.markdown:
        print(markdown(rows))
    else:
        print_to = Console(width=max(120, console.width), highlight=False)
        print_to.print(table(rows))
        print_to.print(setting())
    missed = [row for row in rows for figure in row.figures if not compared(row, figure.peer)[2]]
    return 1 if missed and not chosen.short else 0


if __name__ == "__main__":
    sys.exit(main())
