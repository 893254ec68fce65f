"""The programs of the documentation, and how to run one."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"


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
