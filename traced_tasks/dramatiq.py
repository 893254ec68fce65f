"""Background tasks in the workers of [Dramatiq](https://dramatiq.io)."""

from typing import Any

from dramatiq import Actor, Broker, Middleware, Worker
from dramatiq.broker import MessageProxy

from traced_tasks import _worker
from traced_tasks._dependency import TaskTracing
from traced_tasks._engines import DRAMATIQ
from traced_tasks._options import checked

__all__ = ["TracedTasksMiddleware"]


class TracedTasksMiddleware(Middleware):
    """Gives each task that a worker runs a span of its own.

    ```python
    broker.add_middleware(TracedTasksMiddleware())
    ```

    Args:
        tracing: The worker's own options: `attributes`, `task_hook`, `record_exception`, `span_kind`, the providers. On
            the same key, what came with the message wins. Default: `TaskTracing()`.

    Raises:
        TypeError: `tracing` is not a `TaskTracing`.
    """

    def __init__(self, *, tracing: TaskTracing | None = None) -> None:
        self._tracing = checked(tracing)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:  # noqa: ARG002
        """Have the actor call its function in a run of the message, if it is called for one."""
        actor.fn = _worker.TracedFunction(DRAMATIQ, actor, actor.fn)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Take what came with a message."""
        arguments = message.args, message.kwargs, message.options, message.message_id, message.queue_name
        actor = _actor(broker, message.actor_name)
        _worker.processing.set(_worker.Received(DRAMATIQ, broker, message, actor, *arguments, self._tracing))

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: Any) -> None:  # noqa: ARG002
        """Forget the message."""
        _worker.processing.set(None)

    after_skip_message = after_process_message

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:  # noqa: ARG002
        """Export what is left."""
        _worker.flush(self._tracing)


def _actor(broker: Any, name: str) -> Any:
    return broker.get_actor(name)
