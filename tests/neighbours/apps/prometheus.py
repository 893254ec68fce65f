"""prometheus-fastapi-instrumentator, beside OpenTelemetry."""

import asyncio

from prometheus_fastapi_instrumentator import Instrumentator

from tests.neighbours.apps import shop


async def main() -> str:
    app = shop.make_app()
    Instrumentator().instrument(app).expose(app)
    async with shop.serving(app) as post:
        await post(*shop.ORDERS, *shop.FAILURES)
        return await post("/metrics", method="GET")


shop.record_spans()
metrics = asyncio.run(main())
shop.report(requests=[line.split() for line in metrics.splitlines() if line.startswith("http_requests_total")])
