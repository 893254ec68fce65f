"""FastAPIInstrumentor for every app that is made from now on, then for none; an app from before has none."""

import asyncio

from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

from tests.neighbours.apps import shop


def make_app() -> FastAPI:
    import fastapi  # where the instrumentation has put its own class

    app = fastapi.FastAPI()
    app.include_router(shop.router)
    return app


async def main() -> None:
    before = make_app()
    FastAPIInstrumentor().instrument()
    during = make_app()
    async with shop.serving(before) as post_before, shop.serving(during) as post:
        await post_before("/plain/before", "/traced/before")
        await post("/plain/during", "/traced/during", "/plain-sync/during", "/traced-sync/during")
        await post_before("/plain/beside", "/traced/beside")
    FastAPIInstrumentor().uninstrument()
    await shop.use(make_app(), "/plain/after", "/traced/after")


assert FastAPI.__module__ == "fastapi.applications"
shop.record_spans()
asyncio.run(main())
shop.report()
