"""FastAPI's own telemetry, which needs nothing but a tracer provider."""

import asyncio

from tests.neighbours.apps import shop

shop.record_spans()
asyncio.run(shop.use(shop.make_app(), *shop.ORDERS, *shop.FAILURES))
shop.report()
