"""The task that the shop's app and its worker share, and the broker between them."""

import httpx
from taskiq import AsyncBroker
from taskiq_redis import ListQueueBroker

from traced_tasks.taskiq import TracedTasksMiddleware


def create_broker(url: str) -> ListQueueBroker:
    """Return the broker at this URL."""
    # redis-py gives up after 5 s, and a worker may wait longer than that for a message.
    broker = ListQueueBroker(url, queue_name="shop", socket_timeout=None)
    broker.add_middlewares(TracedTasksMiddleware())
    return broker


def add_notify(broker: AsyncBroker, http: httpx.AsyncClient) -> None:
    @broker.task("notify")
    async def notify(order: int) -> None:
        await http.get("/mail", params={"order": order})
