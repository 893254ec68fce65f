"""The programs of the documentation, how to run one, and how to ask it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"

# Each request has a connection of its own, for on one that is kept the next would wait for the tasks of the last. No
# TLS, for reading its certificates takes longer than an answer.
http = httpx.Client(verify=False, trust_env=False, timeout=30, limits=httpx.Limits(max_keepalive_connections=0))


@contextmanager
def serve(name: str, *options: str, stdout: int = subprocess.DEVNULL) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run an example by uvicorn, as a process of its own."""
    path = EXAMPLES / f"{name}.py"
    with subprocess.Popen(
        [sys.executable, "-B", "-m", "uvicorn", f"{path.stem}:app", "--port", "0", *options],
        cwd=path.parent,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr
        try:
            started = next(line for line in server.stderr if "running on" in line)
            yield re.findall(r"http://[\d.:]+", started)[0], server
        finally:
            server.kill()
