"""An app that sets nothing up, for a command that serves what `opentelemetry-instrument` has instrumented.

As soon as it is served it orders from itself. When all is done it stops its server, and tells what happened.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from tests.neighbours.apps import shop

PORT = int(sys.argv[-1])


async def use() -> None:
    while True:
        try:
            await shop.send(PORT, "/ready", method="GET")
            break
        except ConnectionRefusedError:  # the server listens when the app has started
            await asyncio.sleep(0.005)
    for path in (*shop.ORDERS, *shop.FAILURES):
        await shop.send(PORT, path)
        await shop.all_told()
    signal.raise_signal(signal.SIGINT)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(shop.span_processor())
    # What the server logs from here on belongs to the report.
    server = logging.getLogger("uvicorn")
    server.handlers.clear()
    server.propagate = True
    using = asyncio.create_task(use())
    yield
    await using
    shop.report()


app = FastAPI(lifespan=lifespan)
app.include_router(shop.router)
