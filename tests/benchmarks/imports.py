"""What `import traced_tasks` takes on top of what an application imports anyway."""

import subprocess
import sys

from tests.benchmarks.harness import SUBJECT, Figure, Processes, Row, environment

BASE = "import fastapi, opentelemetry.trace"

_PROGRAM = """
from time import perf_counter
started_at = perf_counter()
import fastapi, opentelemetry.trace
middle = perf_counter()
import traced_tasks
print(middle - started_at, perf_counter() - started_at)
"""


def measure() -> dict[str, list[float]]:
    """Import both in a fresh interpreter, one after the other, and return the seconds since the start."""
    command = [sys.executable, "-c", _PROGRAM]
    base, both = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True).stdout.split()
    return {BASE: [float(base)], SUBJECT: [float(both)]}


def row(processes: Processes) -> Row:
    """Return the row of the table, without the first process, which may have compiled what it imported."""
    figure = Figure(BASE, "at most", 1.05)
    return Row("import traced_tasks, on top of FastAPI", "ms", processes[1:], [figure])
