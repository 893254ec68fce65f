"""Sentry, whose Starlette and FastAPI integrations are on by default, beside OpenTelemetry.

With the argument `otlp` its integration for OpenTelemetry, which leaves tracing to that.
"""

import asyncio
import sys
from typing import Any

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.otlp import OTLPIntegration
from sentry_sdk.transport import Transport

from tests.neighbours.apps import shop

events: list[Any] = []


class Keep(Transport):
    def capture_envelope(self, envelope: Envelope) -> None:
        events.extend(item.payload.json for item in envelope.items if item.type in ("event", "transaction"))


if "otlp" in sys.argv:
    otlp = OTLPIntegration(setup_otlp_traces_exporter=False, capture_exceptions=True)
    sentry_sdk.init("http://public@127.0.0.1/1", transport=Keep(), integrations=[otlp])
else:
    sentry_sdk.init("http://public@127.0.0.1/1", transport=Keep(), traces_sample_rate=1.0)
shop.record_spans()
shop.watched["transaction"] = lambda: getattr(sentry_sdk.get_current_scope().transaction, "op", None)

asyncio.run(shop.use(shop.make_app(), *shop.ORDERS, *shop.FAILURES))
sentry_sdk.flush()
shop.report(
    integrations=sorted(sentry_sdk.get_client().integrations),
    transactions=[
        [event["transaction"], event["contexts"]["trace"]["op"], len(event["spans"])]
        for event in events
        if event.get("type") == "transaction"
    ],
    errors=[
        [event["transaction"], *(value["type"] for value in event["exception"]["values"])]
        for event in events
        if "exception" in event
    ],
    traces_of_errors={event["transaction"]: event["contexts"]["trace"] for event in events if "exception" in event},
)
