"""Background tasks in the workers of [Taskiq](https://taskiq-python.github.io)."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from inspect import isawaitable, iscoroutinefunction
from time import perf_counter
from typing import Any
from weakref import WeakSet

from anyio import to_thread
from opentelemetry import context as otel_context
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult

from traced_tasks import _worker
from traced_tasks._dependency import TaskTracing
from traced_tasks._engines import TASKIQ, Engine
from traced_tasks._options import checked
from traced_tasks._run import Run, end, raise_again

__all__ = ["TracedTasksMiddleware"]


class TracedTasksMiddleware(TaskiqMiddleware):
    """Gives each task that a worker runs a span of its own.

    ```python
    broker = RedisStreamBroker("redis://localhost").with_middlewares(TracedTasksMiddleware())
    ```

    If the broker has Taskiq's `OpenTelemetryMiddleware` as well, that one makes the span.

    Args:
        tracing: The worker's own options: `attributes`, `task_hook`, `record_exception`, `span_kind`, the providers. On
            the same key, what came with the message wins. Default: `TaskTracing()`.

    Raises:
        TypeError: `tracing` is not a `TaskTracing`.
    """

    def __init__(self, *, tracing: TaskTracing | None = None) -> None:
        super().__init__()
        self._tracing = checked(tracing)
        self._traced: WeakSet[Any] = WeakSet()

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Take what came with a message."""
        task: Any = self.broker.find_task(message.task_name)
        if task not in self._traced:
            # A `def` task waits for a thread of the worker's pool. Only its function knows when it starts.
            is_async = iscoroutinefunction(task.original_func)
            task.original_func = (_traced if is_async else _TracedFunction)(TASKIQ, task, task.original_func)
            self._traced.add(task)
        queue = message.labels.get("queue_name") or TASKIQ.queue(self.broker, task)
        outer = _worker.processing.get()
        if outer is not None and outer.message is message:
            return message  # another middleware like this one has it
        arguments = message.args, message.kwargs, message.labels, message.task_id, queue
        received = _worker.Received(TASKIQ, self.broker, message, task, *arguments, self._tracing)
        received.owner = self
        _worker.processing.set(received)
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:  # noqa: ARG002
        """Keep what was raised, perhaps before the function was called."""
        if (received := _worker.processing.get()) is not None:
            received.failed = TASKIQ.failed(exception)

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:  # noqa: ARG002
        """Report a run that was not seen: a dependency has failed, or the function ran in a pool of processes."""
        received = _worker.processing.get()
        if received is not None and received.owner is self and received.message_id == message.task_id:
            _worker.processing.set(received.outer)
            ago = perf_counter() - received.received_at
            if not received.called and (run := received.start(ago)) is not None:
                end(run, None, received.failed)

    async def shutdown(self) -> None:
        """Export what is left."""
        if self.broker.is_worker_process:
            await to_thread.run_sync(_worker.flush, self._tracing)


def _traced(engine: Engine, task: Any, func: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(func)
    async def call(*args: Any, **kwargs: Any) -> Any:
        run = _worker.start_message(task)
        return await (func(*args, **kwargs) if run is None else _wait(engine, run, partial(func, *args, **kwargs)))

    return call


async def _wait(engine: Engine, run: Run, call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        result = await call()
    except BaseException as error:
        raised = [error]
    else:
        end(run, result)
        return result
    end(run, None, engine.failed(raised[0]))
    return raise_again(raised)


class _TracedFunction(_worker.TracedFunction):
    def end(self, run: Run, result: Any) -> Any:
        """Go on in the event loop if the worker awaits what the function returned there."""
        return self._wait(run, result) if isawaitable(result) else super().end(run, result)

    async def _wait(self, run: Run, result: Any) -> Any:
        task, started_at, span, context, token, _, measured, _ = run
        token = None if token is None else otel_context.attach(context)  # the thread's is none of this one's
        return await _wait(TASKIQ, (task, started_at, span, context, token, (), measured, None), lambda: result)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Give a pool of processes the function itself, which it finds by its name."""
        return partial, (self.func,)
