"""The application in a process of its own, and 100 connections to it."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

ROUTES = ("/child/async", "/child/sync", "/link/async", "/link/sync")
LIMIT = 120.0  # seconds, for a round of requests
STALL = 30.0  # seconds, without a span


@dataclass
class Server:
    """The application as it runs."""

    pid: int
    port: int
    spans: Path
    log: Path


@contextmanager
def serve(folder: Path, *options: str) -> Iterator[Server]:
    """Serve the application until the block ends.

    If the block fails, the server tells where its threads are, and its log is printed.

    Args:
        folder: Where its spans and its log are written.
        *options: For the interpreter.
    """
    spans, log = folder / "spans.jsonl", folder / "server.log"
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    with listening, log.open("w") as output:
        port, fd = listening.getsockname()[1], listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *options, "-m", "tests.load.app", str(fd), str(spans)],
            pass_fds=[fd],
            stdout=output,
            stderr=output,
        )
    # The socket is now the server's alone: if it dies, the connections do.
    with process:
        try:
            yield Server(process.pid, port, spans, log)
            process.terminate()
            process.wait(STALL)
        except BaseException:
            process.send_signal(signal.SIGABRT)
            process.wait()
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            process.kill()


class Connection:
    """A connection that is kept open, with as little of HTTP as it takes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self, method: str, path: str, *headers: str) -> Any:
        """Return the JSON of the response."""
        lines = [f"{method} {path} HTTP/1.1", "host: load", *headers, "", ""]
        self._writer.write("\r\n".join(lines).encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise ConnectionError(f"{method} {path}: {head!r}")
        return json.loads(await self._reader.readexactly(int(length[1])))

    def close(self) -> None:
        self._writer.close()


class Client:
    """Many connections to one server."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._spans = 0  # how many should have ended since the connections were opened

    async def load(self, requests: range, tasks: int) -> None:
        """Make requests, as many at once as there are connections, each with tasks, and wait for their end."""
        numbers = iter(requests)

        async def make(connection: Connection) -> None:
            for number in numbers:
                await connection.request(
                    "POST",
                    f"{ROUTES[number % len(ROUTES)]}/{number}/{tasks}",
                    # Of each request the client knows the trace and the baggage.
                    f"traceparent: 00-{number + 1:032x}-{number + 1:016x}-01",
                    f"baggage: client={number}",
                )

        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            for connection in self._connections:
                group.create_task(make(connection))
        await self._settle(len(requests) * (1 + 2 * tasks))

    async def many(self, tasks: int) -> dict[str, float]:
        """Make one request that adds many tasks, and return what they took."""
        async with asyncio.timeout(LIMIT):
            await self._connections[0].request("POST", f"/many/{tasks}")
        await self._settle(1 + tasks + 1)
        measured: dict[str, float] = await self.get("/many")
        return measured

    async def get(self, path: str) -> Any:
        return await self._connections[0].request("GET", path)

    async def _settle(self, spans: int) -> None:
        """Wait until so many more spans have ended, or none has for a while."""
        self._spans += spans
        last, since = -1, monotonic()
        while (ended := await self.get("/ended")) < self._spans and monotonic() < since + STALL:
            if ended > last:
                last, since = ended, monotonic()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def connect(server: Server, connections: int) -> AsyncIterator[Client]:
    """Open connections to the server."""
    opened = [
        Connection(*await asyncio.open_connection("127.0.0.1", server.port, limit=2**16)) for _ in range(connections)
    ]
    try:
        yield Client(opened)
    finally:
        for connection in opened:
            connection.close()
