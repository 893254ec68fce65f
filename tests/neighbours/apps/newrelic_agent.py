# ruff: noqa: E402  # the agent patches what is imported after it
"""New Relic's agent, whose developer mode instruments everything and sends nothing, beside OpenTelemetry."""

import os
import time

os.environ.update(
    NEW_RELIC_APP_NAME="shop",
    NEW_RELIC_LICENSE_KEY="0" * 40,
    NEW_RELIC_DEVELOPER_MODE="true",
    NEW_RELIC_LOG="stderr",
    NEW_RELIC_LOG_LEVEL="warning",
)

import newrelic.agent

newrelic.agent.initialize()

# Nothing is recorded before it is active. Here, because who first asks OpenTelemetry for a tracer activates it and does
# not wait. And not by a timeout, which it doesn't wait for if the thread that connects has not started within 0.1 s.
application = newrelic.agent.register_application()
while not application.active:
    time.sleep(0.005)

import asyncio

from newrelic.core.agent import agent_instance
from starlette.background import BackgroundTask

from tests.neighbours.apps import shop

SHOWN = ("WebTransaction/", "OtherTransaction/", "Errors/")

shop.record_spans()
shop.watched["transaction"] = lambda: getattr(newrelic.agent.current_transaction(active_only=False), "name", None)


async def main() -> list[dict[str, int]]:
    engine = agent_instance().application("shop")._stats_engine
    counts = []
    async with shop.serving(shop.make_app()) as post:
        for kind in ("plain", "traced"):
            await post(f"/{kind}/1", f"/{kind}-sync/1", f"/{kind}-failing/1")
            metrics = [(name, stats) for (name, scope), stats in engine.stats_table.items() if not scope]
            counts.append({name: stats.call_count for name, stats in metrics if name.startswith(SHOWN)})
    return counts


plain, both = asyncio.run(main())
shop.report(
    patched=hasattr(BackgroundTask.__call__, "__wrapped__"),
    plain=plain,
    traced={name: count - plain.get(name, 0) for name, count in both.items() if count > plain.get(name, 0)},
)
