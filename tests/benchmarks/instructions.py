"""Instructions that a task or a request takes, by valgrind's callgrind: what a busy machine cannot blur.

`python -m tests.benchmarks.instructions WHAT PEER TIMES` is what valgrind runs, twice: the difference between two
numbers of times leaves out the start of Python.
"""

import asyncio
import gc
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from tests.benchmarks import live, requests, tasks
from tests.benchmarks.harness import SUBJECT, Block
from tests.benchmarks.tasks import BARE, CONFIGURATIONS, CONTRIB, FASTAPI, PLAIN, configure, peers

TASK = (SUBJECT, PLAIN, BARE, FASTAPI, CONTRIB)
REQUEST = (SUBJECT, *(peer for peer in requests.APPS if peer != SUBJECT))
COUNTED = {
    **{name: (CONFIGURATIONS[name].title, TASK) for name in ("tracing", "off", "metrics", "unsampled", "threads")},
    "live": ("a task, SDK tracing, with the live page", (SUBJECT, live.WITHOUT)),
    "request-off": ("a request, one task, telemetry off", REQUEST),
    "request-tracing": ("a request, one task, SDK tracing and operation_spans", REQUEST),
}
FEW, MANY = 400, 1_200


def table() -> Table:
    """Count all, and return the table."""
    drawn = Table("", "instructions", "traced-tasks against it", title="What a task takes, and a request")
    both = [(name, peer) for name, (_, each) in COUNTED.items() for peer in each]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        counts = dict(zip(both, threads.map(lambda counted: count(*counted), both), strict=True))
    for name, (title, each) in COUNTED.items():
        drawn.add_section()
        drawn.add_row(title, style="bold")
        for peer in each:
            own, others = counts[name, SUBJECT], counts[name, peer]
            drawn.add_row(f"  {peer}", f"{others:,.0f}", f"{own / others:.3f}")
    return drawn


def count(what: str, peer: str) -> float:
    """Return the instructions of a task, or of a request."""
    _run((), what, peer, FEW)  # so that no later one has anything to compile
    few, many = (_total(what, peer, times) for times in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _total(what: str, peer: str, times: int) -> int:
    with TemporaryDirectory() as folder:
        output = Path(folder, "callgrind")
        _run(("valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"), what, peer, times)
        total = re.search(r"^(?:summary|totals): (\d+)", output.read_text(), re.MULTILINE)
        assert total
        return int(total[1])


def _run(under: Sequence[str], *arguments: object) -> None:
    command = [*under, sys.executable, "-m", "tests.benchmarks.instructions", *map(str, arguments)]
    environment = {"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]}
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)


async def _block(what: str, peer: str) -> tuple[Block, int]:
    """Return a measurement, and how many tasks or requests are in it."""
    if what.startswith("request"):
        configure(CONFIGURATIONS[what.removeprefix("request-")])
        return requests.block(requests.APPS[peer]), requests.REQUESTS
    if what == "live":
        return live.peers()[peer](), live.TASKS
    configure(CONFIGURATIONS[what])
    queue, context = (await peers(CONFIGURATIONS[what]))[peer]
    return tasks.block(queue, CONFIGURATIONS[what].func, context), tasks.TASKS


async def _measured(what: str, peer: str, times: int) -> None:
    """Be the process whose instructions are counted."""
    measure, together = await _block(what, peer)
    gc.collect()
    gc.disable()
    for _ in range(times // together):
        await measure()


if __name__ == "__main__":
    asyncio.run(_measured(sys.argv[1], sys.argv[2], int(sys.argv[3])))
