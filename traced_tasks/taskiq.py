"""Background tasks in the workers of [Taskiq](https://taskiq-python.github.io)."""

from time import perf_counter
from typing import Any
from weakref import WeakSet

from anyio import to_thread
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult

from traced_tasks import _worker
from traced_tasks._dependency import TaskTracing
from traced_tasks._engines import TASKIQ

__all__ = ["TracedTasksMiddleware"]


class TracedTasksMiddleware(TaskiqMiddleware):
    """Gives each task that a worker runs a span of its own.

    ```python
    broker = ListQueueBroker("redis://localhost").with_middlewares(TracedTasksMiddleware())
    ```

    Where Taskiq's `OpenTelemetryMiddleware` is among the broker's middlewares as well, the span is that one's.

    Args:
        tracing: The worker's own options: `attributes`, `task_hook`, `record_exception`, `span_kind`, the providers. On
            the same key, what came with the message wins. Default: `TaskTracing()`.

    Raises:
        TypeError: `tracing` is not a `TaskTracing`.
    """

    def __init__(self, *, tracing: TaskTracing | None = None) -> None:
        super().__init__()
        self._tracing = _worker.options(tracing)
        self._traced: WeakSet[Any] = WeakSet()

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Take what came with a message."""
        task: Any = self.broker.find_task(message.task_name)
        if task not in self._traced:
            # A `def` task waits for a thread of the worker's pool. Only its function knows when it starts.
            task.original_func = _worker.traced(TASKIQ, task, task.original_func)
            self._traced.add(task)
        queue = message.labels.get("queue_name") or TASKIQ.queue(task)
        arguments = message.args, message.kwargs, message.labels, message.task_id, queue
        _worker.begin(_worker.receive(TASKIQ, task, *arguments, self._tracing))
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:  # noqa: ARG002
        """Keep what was raised, perhaps before the function was called."""
        processing = _worker.processing.get()
        if processing is not None and processing.message is not None:
            processing.message.failure = TASKIQ.failure(exception)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:  # noqa: ARG002
        """Report a run that was not seen: a dependency has failed, or the function ran in a pool of processes."""
        received = _worker.finish()
        if received is not None and not received.called:
            received.report(received.failure, perf_counter() - received.received_at)

    async def shutdown(self) -> None:
        """Export what is left."""
        if self.broker.is_worker_process:
            await to_thread.run_sync(_worker.flush, self._tracing)
