"""How to measure on a machine that does other things as well: many short rounds, all peers in each of them.

A peer is measured in every round, in another order each time, so what slows the machine down slows all of them. What a
process decides once (where its memory lies, the seed of its hashes) moves a ratio by several percent, so there are
several processes, and a ratio is the median of theirs.
"""

import asyncio
import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal, NamedTuple

SUBJECT = "traced-tasks"

Rounds = Mapping[str, Sequence[float]]
"""What one process measured: the rounds of each peer."""

Processes = Sequence[Rounds]

Block = Callable[[], Awaitable[float]]
"""A measurement of a peer: it runs for about a millisecond, and returns the figure."""


class Effort(NamedTuple):
    """How much is done to get a figure."""

    processes: int
    rounds: int
    seconds: float
    """Of each burst of requests."""


FULL = Effort(processes=7, rounds=200, seconds=0.1)
SHORT = Effort(processes=1, rounds=2, seconds=0.05)


class Figure(NamedTuple):
    """What a row has to reach, against one of its peers."""

    peer: str
    sense: Literal["at most", "below", "at least"]
    bound: float

    def reached(self, value: float) -> bool:
        """Return whether the value is what was to be reached."""
        match self.sense:
            case "at most":
                return value <= self.bound
            case "below":
                return value < self.bound
            case "at least":
                return value >= self.bound


@dataclass(frozen=True)
class Row:
    """A line of the issue's table: its peers, and what traced-tasks has to reach against them."""

    title: str
    unit: str
    processes: Sequence[Rounds]
    figures: Sequence[Figure] = ()

    @property
    def peers(self) -> list[str]:
        """The names of those that were measured."""
        return list(self.processes[0])

    def median(self, peer: str) -> float:
        """Return the median of a peer over the processes."""
        return median(median(rounds[peer]) for rounds in self.processes)

    def spread(self, peer: str) -> float:
        """Return half the distance between the quartiles of all rounds, relative to the median."""
        rounds = [value for process in self.processes for value in process[peer]]
        if len(rounds) < 2:
            return 0.0
        low, _, high = quantiles(rounds, n=4)
        return (high - low) / 2 / self.median(peer)

    def against(self, peer: str) -> tuple[float, float, float]:
        """Return traced-tasks' ratio to a peer: the median of the processes, the least, the most."""
        values = []
        for rounds in self.processes:
            own, others = median(rounds[SUBJECT]), median(rounds[peer])
            values.append(own / others)
        return median(values), min(values), max(values)


async def interleave(blocks: Mapping[str, Block], rounds: int) -> dict[str, list[float]]:
    """Measure peers in turns.

    Args:
        blocks: Theirs.
        rounds: How many there are, behind a fifth as many to warm up.
    """
    figures: dict[str, list[float]] = {name: [] for name in blocks}
    order = list(blocks)
    warm = rounds // 5 + 1
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would be charged to whoever happens to run
    for number in range(warm + rounds):
        random.shuffle(order)
        for name in order:
            figure = await blocks[name]()
            if number >= warm:
                figures[name].append(figure)
        gc.collect()
    return figures


def in_process(module: str, *arguments: object) -> dict[str, list[float]]:
    """Run a module of this package in a process of its own, and return what it measured."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    output = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True).stdout
    figures: dict[str, list[float]] = json.loads(output)
    return figures


def environment() -> dict[str, str]:
    """Return this process's environment without what would set up telemetry, or keep Python from caching bytecode."""
    settings = ("OTEL_", "DD_", "FASTAPI_OTEL_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)}


def report(measuring: Awaitable[Rounds]) -> None:
    """Be the process of its own: measure, and print the figures for `in_process`."""

    async def measure() -> None:
        print(json.dumps(await measuring))

    asyncio.run(measure())
