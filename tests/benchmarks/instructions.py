"""Instructions a task takes, by valgrind's callgrind: what a busy machine cannot blur.

`python -m tests.benchmarks.instructions CONFIGURATION PEER TASKS` is what valgrind runs, twice: the difference between
two numbers of tasks leaves out the start of Python.
"""

import asyncio
import gc
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from tests.benchmarks.harness import SUBJECT
from tests.benchmarks.tasks import BARE, CONFIGURATIONS, CONTRIB, FASTAPI, PLAIN, TASKS, block, configure, peers

PEERS = (SUBJECT, PLAIN, BARE, FASTAPI, CONTRIB)
COUNTED = ("tracing", "off", "metrics", "unsampled")
FEW, MANY = 1_000, 3_000


def table() -> Table:
    """Count all, and return the table."""
    drawn = Table("", "instructions of a task", "traced-tasks against it", title="What a task takes")
    both = list(product(COUNTED, PEERS))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        counts = dict(zip(both, threads.map(lambda each: count(*each), both), strict=True))
    for name in COUNTED:
        drawn.add_section()
        drawn.add_row(CONFIGURATIONS[name].title, style="bold")
        for peer in PEERS:
            own, others = counts[name, SUBJECT], counts[name, peer]
            drawn.add_row(f"  {peer}", f"{others:,.0f}", f"{own / others:.3f}")
    return drawn


def count(configuration: str, peer: str) -> float:
    """Return the instructions of a task."""
    _run((), configuration, peer, 0)  # so that no later one has anything to compile
    few, many = (_total(configuration, peer, tasks) for tasks in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _total(configuration: str, peer: str, tasks: int) -> int:
    with TemporaryDirectory() as folder:
        output = Path(folder, "callgrind")
        _run(("valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"), configuration, peer, tasks)
        total = re.search(r"^(?:summary|totals): (\d+)", output.read_text(), re.MULTILINE)
        assert total
        return int(total[1])


def _run(under: Sequence[str], *arguments: object) -> None:
    command = [*under, sys.executable, "-m", "tests.benchmarks.instructions", *map(str, arguments)]
    environment = {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]}
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)


async def _measured(name: str, peer: str, tasks: int) -> None:
    """Be the process whose instructions are counted."""
    configuration = CONFIGURATIONS[name]
    configure(configuration)
    queue, context = (await peers(configuration))[peer]
    measure = block(queue, configuration.func, context)
    gc.collect()
    gc.disable()
    for _ in range(tasks // TASKS):
        await measure()


if __name__ == "__main__":
    asyncio.run(_measured(sys.argv[1], sys.argv[2], int(sys.argv[3])))
