"""Logfire, which brings the tracer provider and instruments the app with FastAPIInstrumentor."""

import asyncio

import logfire

from tests.neighbours.apps import shop

logfire.configure(
    send_to_logfire=False,
    console=False,
    service_name="shop",
    additional_span_processors=[shop.span_processor()],
)
app = shop.make_app()
logfire.instrument_fastapi(app)

asyncio.run(shop.use(app, *shop.ORDERS, *shop.FAILURES))
shop.report()
