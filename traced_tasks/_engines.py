"""What Taskiq, Celery and Dramatiq call a broker and a task, and how each of them is given one."""
# Rule: none of them is imported, because whoever holds an object of theirs has done that. An object is told by its
# real type, because a Mock is an instance of whatever it imitates.

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MethodType
from typing import Any, Literal
from uuid import uuid4

from opentelemetry import trace


class Engine(ABC):
    """How an engine is used, by its public API. A `task` is what its decorator has made of a function."""

    system: str  # its `messaging.system`, and its package
    classes: tuple[str, str]  # of its broker and of its tasks
    method: str  # of a task, that sends it
    blocks: bool  # whether sending does, so that a thread has to do it

    @abstractmethod
    def function(self, task: Any) -> Callable[..., Any]:
        """Return the function of a task."""

    @abstractmethod
    def broker(self, task: Any) -> Any:
        """Return the broker that a task is sent with."""

    def queue(self, broker: Any, task: Any) -> str | None:  # noqa: ARG002
        """Return the name of the queue that a task is sent to, if that is known."""
        return None

    def runs_here(self, broker: Any) -> bool:  # noqa: ARG002
        """Whether a task is called, and not sent, so that what `send` raises is what the task has raised."""
        return False

    @abstractmethod
    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        """Send a task, or return a coroutine that does."""

    def message_id(self, broker: Any) -> str:  # noqa: ARG002
        """Make the id of a message."""
        return str(uuid4())

    def attributes(self, operation: Literal["send", "process"], message_id: str, queue: str | None) -> dict[str, str]:
        """Return the attributes of a span, see https://opentelemetry.io/docs/specs/semconv/messaging/."""
        attributes = {
            "messaging.system": self.system,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.message.id": message_id,
        }
        if queue:
            attributes["messaging.destination.name"] = queue
        return attributes

    def is_instrumented(self, broker: Any) -> bool:  # noqa: ARG002
        """Whether an instrumentation of the engine's own makes the spans of a broker's messages, in this process."""
        return False

    @abstractmethod
    def failed(self, raised: Any) -> Sequence[BaseException]:
        """Return what failed, of what a function raised in a worker: nothing, if it asks for something by that."""


class Taskiq(Engine):
    system, classes, method, blocks = "taskiq", ("AsyncBroker", "AsyncTaskiqDecoratedTask"), "kiq", False

    def function(self, task: Any) -> Callable[..., Any]:
        return task.original_func  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.kicker().broker  # the default one, if it is a shared task

    def queue(self, broker: Any, task: Any) -> str | None:
        name = task.labels.get("queue_name") or getattr(broker, "queue_name", None)
        return None if name is None else str(name)

    def message_id(self, broker: Any) -> str:
        return str(broker.id_generator())

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        kicker = task.kicker().with_task_id(message_id)
        kicker.labels = {**kicker.labels, **headers}  # a shared task's are its own, and stay
        return kicker.kiq(*args, **kwargs)

    def is_instrumented(self, broker: Any) -> bool:
        module: Any = sys.modules.get("taskiq.middlewares.opentelemetry_middleware")
        return module is not None and any(
            isinstance(each, module.OpenTelemetryMiddleware) for each in broker.middlewares
        )

    def failed(self, raised: Any) -> Sequence[BaseException]:
        return [] if isinstance(raised, sys.modules["taskiq.exceptions"].NoResultError) else [raised]


class Celery(Engine):
    system, classes, method, blocks = "celery", ("Celery", "Task"), "delay", True

    def function(self, task: Any) -> Callable[..., Any]:
        return task.run  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.app

    def runs_here(self, broker: Any) -> bool:
        return bool(broker.conf.task_always_eager)

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        # Only Celery's router knows the queue, and it may choose another one each time.
        published: Any = sys.modules["celery.signals"].before_task_publish
        published.connect(_tell_queue, weak=False, dispatch_uid="traced_tasks")
        with suppress(sys.modules["celery.exceptions"].Retry):
            task.apply_async(args, kwargs, task_id=message_id, headers=dict(headers))

    def is_instrumented(self, broker: Any) -> bool:  # noqa: ARG002
        module: Any = sys.modules.get("opentelemetry.instrumentation.celery")
        return module is not None and module.CeleryInstrumentor().is_instrumented_by_opentelemetry is True

    def failed(self, raised: Any) -> Sequence[BaseException]:
        exceptions = sys.modules["celery.exceptions"]
        if isinstance(raised, exceptions.Retry):
            return [raised.exc] if isinstance(raised.exc, BaseException) else []
        asks = isinstance(raised, exceptions.Ignore) or (isinstance(raised, exceptions.Reject) and raised.requeue)
        return [] if asks else [raised]


class Dramatiq(Engine):
    system, classes, method, blocks = "dramatiq", ("Broker", "Actor"), "send", True

    def function(self, task: Any) -> Callable[..., Any]:
        func = task.fn.__wrapped__ if type(task.fn).__module__ == "traced_tasks._worker" else task.fn
        # An `async def` one is inside of a function that needs the event loop of a worker.
        is_async = getattr(func, "__globals__", {}).get("__name__") == "dramatiq.asyncio"
        return func.__wrapped__ if is_async else func  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.broker

    def queue(self, broker: Any, task: Any) -> str | None:  # noqa: ARG002
        return str(task.queue_name)

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        message = task.message_with_options(args=args, kwargs=kwargs, **headers).copy(message_id=message_id)
        task.broker.enqueue(message)

    def failed(self, raised: Any) -> Sequence[BaseException]:
        return [] if isinstance(raised, sys.modules["dramatiq.errors"].Retry) else [raised]


def _tell_queue(headers: Mapping[str, Any], routing_key: str, **_: Any) -> None:
    if "traced_tasks" in headers:
        trace.get_current_span().set_attribute("messaging.destination.name", routing_key)


TASKIQ, CELERY, DRAMATIQ = Taskiq(), Celery(), Dramatiq()
_ENGINES: dict[str, Engine] = {engine.system: engine for engine in (TASKIQ, CELERY, DRAMATIQ)}


def engine_of_broker(given: object) -> Engine | None:
    """Return the engine whose broker (or, of Celery, app) this is."""
    return _engine(type(given), 0)


def engine_task(func: object) -> tuple[Engine, Any, bool] | None:
    """Return the engine and the task that were given to `add_task`, if so, and whether by the method that sends it."""
    task: object = func.__self__ if type(func) is MethodType else func
    local: Any = sys.modules.get("celery.local")
    # Celery makes a task when it is first used.
    cls = task.__class__ if local is not None and issubclass(type(task), local.Proxy) else type(task)
    engine = _engine(cls, 1)
    if engine is None or (type(func) is MethodType and func.__func__ is not getattr(cls, engine.method)):
        return None
    return engine, task, type(func) is MethodType


def _engine(cls: type, kind: int) -> Engine | None:
    with suppress(Exception):  # of somebody's metaclass
        for base in cls.__mro__:
            engine = _ENGINES.get(base.__module__.partition(".")[0])
            if engine is not None and base.__name__ == engine.classes[kind]:
                return engine
    return None
