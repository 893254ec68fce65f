"""FastAPIInstrumentor on an app before it serves, on one that serves already, and off again."""

import asyncio

from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from tests.neighbours.apps import shop


async def main() -> None:
    app, other = shop.make_app(), shop.make_app()
    async with shop.serving(other) as post:
        await post("/plain/before", "/traced/before")
        FastAPIInstrumentor.instrument_app(app)
        await post("/plain/beside", "/traced/beside")  # only `app` is instrumented
        await shop.use(app, *shop.ORDERS, *shop.FAILURES)
        FastAPIInstrumentor.instrument_app(other)
        await post("/plain/during", "/traced/during")  # its middleware is built already
        other.middleware_stack = None
        await post("/plain/rebuilt", "/traced/rebuilt", "/plain-sync/rebuilt", "/traced-sync/rebuilt")
        FastAPIInstrumentor.uninstrument_app(other)
        await post("/plain/after", "/traced/after")


shop.record_spans()
asyncio.run(main())
shop.report()
