"""A load generator, which does next to nothing with an answer, so that it takes less of the machine than the server."""

import asyncio
from time import perf_counter


class Client(asyncio.Protocol):
    """A connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answers = 0
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Ask again, at the end of an answer, which is `null`."""
        if data.endswith(b"null"):
            self.answers += 1
            self.transport.write(self.request)
        elif not data.startswith(b"HTTP/1.1 200"):
            self.failures += 1

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self.failures += 1


async def load(port: int, path: str, seconds: float, connections: int) -> float:
    """Ask for some seconds, and return the requests per second."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    clients = [Client(request) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    while not all(client.answers or client.failures for client in clients):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    before, started_at = sum(client.answers for client in clients), perf_counter()
    answers = 0
    while not answers and not any(client.failures for client in clients):  # a busy machine may take its time
        await asyncio.sleep(seconds)
        answers = sum(client.answers for client in clients) - before
    took = perf_counter() - started_at
    assert not any(client.failures for client in clients)
    for client in clients:
        client.transport.abort()
    return answers / took
