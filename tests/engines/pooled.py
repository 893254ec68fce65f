"""A task that a pool of processes has to find by its name."""

from taskiq import InMemoryBroker

from traced_tasks.taskiq import TracedTasksMiddleware

broker = InMemoryBroker(await_inplace=True)
broker.add_middlewares(TracedTasksMiddleware())


@broker.task("pooled")
def pooled(fails: bool) -> None:
    if fails:
        raise ValueError
