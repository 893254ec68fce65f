"""Run the application of `app.py` on a real server, in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.programs import http

COMMANDS: dict[str, list[str]] = {
    **{
        f"uvicorn-{http}-{loop}": ["uvicorn", "--http", http, "--loop", loop, "--port", "{port}"]
        for http in ("h11", "httptools")
        for loop in ("asyncio", "uvloop")
    },
    **{
        f"hypercorn-{worker}": ["hypercorn", "-k", worker, "--bind", "127.0.0.1:{port}"]
        for worker in ("asyncio", "uvloop", "trio")
    },
    "gunicorn": ["gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"],
    "gunicorn-preload": [
        *("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:{port}"),
        *("--preload", "--workers", "2"),
    ],
}


class Server:
    """A running server, and what its application has recorded."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, records: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._records = records

    def get(self, path: str) -> httpx.Response:
        return http.get(self.url + path)

    def open(self, path: str) -> socket.socket:
        """Send a GET, and leave the answer to the test."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        return client

    def records(self, **known: object) -> list[dict[str, Any]]:
        """The lines with these values, in their order."""
        if not self._records.exists():
            return []
        text = self._records.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if known.items() <= line.items()]

    def ran(self, order: str) -> list[str]:
        """What the tasks of a request, and its handler, have done."""
        return [line["ran"] for line in self.records(order=order) if "ran" in line]

    def told(self, order: str) -> list[tuple[str, str | None]]:
        """The tasks' spans of a request, and how they failed."""
        return [(line["span"], line["error"]) for line in self.records(order=order, is_task=True)]

    def release(self) -> None:
        """Let go on what waits."""
        self._records.with_suffix(".go").touch()

    def hold(self) -> None:
        """Let wait again what comes."""
        self._records.with_suffix(".go").unlink()

    def terminate(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def wait_for(ready: Callable[[], Any]) -> Any:
    """Wait until something is true."""
    deadline = time.monotonic() + 30
    while not (answer := ready()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return answer


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def serve(name: str, folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Run a server until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    records = folder / f"{port}.jsonl"
    module, *command = COMMANDS[name]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *(part.format(port=port) for part in command),
                *options,
                "tests.servers.app:app",
            ],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment, "RECORDS": str(records)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = Server(process, port, records)

        def is_up() -> bool:
            assert process.poll() is None, Path(log.name).read_text()
            return is_listening(port) and bool(server.records(lifespan="started"))

        try:
            wait_for(is_up)
            yield server
        finally:
            # The workers too, of whom a killed master would know nothing.
            for each in {process.pid, *(line["pid"] for line in server.records())}:
                try:
                    os.kill(each, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait(30)
