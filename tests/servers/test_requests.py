"""The tasks of requests to real servers, also of requests whose client is gone."""

import socket
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.servers.serving import COMMANDS, Server, serve, wait_for


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as server:
        yield server


def test_requests_at_once(server: Server) -> None:
    """Of requests at once, each task has one span, in the trace of its own request, and the lifespan's state."""
    orders = [uuid.uuid4().hex for _ in range(20)]

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda order: server.get(f"/traced/checkout?order={order}").json(), orders))

    assert answers == orders
    wait_for(lambda: {f"order={order}" for order in orders} <= {line.get("done") for line in server.records()})
    for order in orders:
        assert server.ran(order) == ["notify", "behind"]
        assert server.records(ran="notify", order=order)[0]["pool"] == "open"
        assert server.told(order) == [("notify", None), ("behind", None)]
        (request,) = server.records(order=order, is_task=False)
        assert {line["trace"] for line in server.records(order=order, is_task=True)} == {request["trace"]}


@pytest.mark.parametrize("prefix", ["", "/wrapped"], ids=["bare", "under BaseHTTPMiddleware"])
@pytest.mark.parametrize("path", ["late", "stream"])
def test_a_client_that_is_gone(server: Server, path: str, prefix: str) -> None:
    """A client that leaves before or in the middle of the answer costs the same tasks as with a plain queue."""
    fates = []
    for queue in ("plain", "traced"):
        order = f"{queue}-{path}-{uuid.uuid4().hex}"
        client = server.open(f"{prefix}/{queue}/{path}?order={order}")
        if path == "stream":
            assert client.recv(1)
        else:
            wait_for(partial(server.ran, order))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a bang
        client.close()
        server.release()
        wait_for(partial(server.records, done=f"order={order}"))
        fates.append([line for line in server.ran(order) if line != "handler"])
        server.hold()

    plain, traced = fates
    assert traced == plain
    wait_for(lambda: server.get("/collect").is_success and len(server.told(order)) == 2)
    assert [name for name, error in server.told(order) if error is None] == traced
    assert sorted(name for name, _ in server.told(order)) == ["behind", "notify"]
