"""structlog's context variables, bound in a middleware and in the handler, and asgi-correlation-id's."""

import asyncio
from collections.abc import Awaitable, Callable

from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from fastapi import Request, Response
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

from tests.neighbours.apps import shop

shop.record_spans()
shop.watched["structlog"] = get_contextvars
shop.watched["correlation_id"] = correlation_id.get
shop.in_handler.append(lambda: bind_contextvars(bound="in handler"))
app = shop.make_app()


@app.middleware("http")
async def bind(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    clear_contextvars()
    bind_contextvars(number=request.url.path.rpartition("/")[2])
    return await call_next(request)


app.add_middleware(CorrelationIdMiddleware, validator=None)


async def main() -> None:
    async with shop.serving(app) as post:
        for path in shop.ORDERS:
            await post(path, header=f"X-Request-ID: request {path.rpartition('/')[2]}")


asyncio.run(main())
shop.report()
