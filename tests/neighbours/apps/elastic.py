"""Elastic APM's Starlette middleware, beside OpenTelemetry."""

import asyncio
from typing import Any

import elasticapm
from elasticapm.base import Client
from elasticapm.contrib.starlette import ElasticAPM, make_apm_client

from tests.neighbours.apps import shop

kept: list[tuple[str, Any]] = []


class Keep(Client):
    def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
        kept.append((event_type, data))


client = make_apm_client(
    {"SERVICE_NAME": "shop", "DISABLE_SEND": True, "CENTRAL_CONFIG": False, "METRICS_INTERVAL": "0s"},
    client_cls=Keep,
    cloud_provider="none",
    server_version=(8, 0, 0),
)
shop.record_spans()
shop.watched["transaction"] = lambda: elasticapm.get_transaction_id() is not None
app = shop.make_app()
app.add_middleware(ElasticAPM, client=client)

asyncio.run(shop.use(app, *shop.ORDERS, *shop.FAILURES))
client.close()
shop.report(
    transactions=[
        [data["name"], data["result"], data["span_count"]["started"]] for kind, data in kept if kind == "transaction"
    ],
    errors=[
        [data["transaction"]["name"], data["exception"]["type"], data["culprit"]]
        for kind, data in kept
        if kind == "error"
    ],
)
