"""What Taskiq, Celery and Dramatiq call a broker and a task, and how each of them is given one."""
# Rule: none of them is imported. Who holds an object of theirs has done that. And it is told by its real type, for a
# Mock is an instance of whatever it imitates.

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import iscoroutinefunction, unwrap
from types import MethodType
from typing import Any, Literal, NamedTuple
from uuid import uuid4


class Engine(ABC):
    """How an engine is used, by its public API."""

    system: str
    """Its `messaging.system`, and its package."""
    classes: tuple[str, str]
    """The names of its broker's class and of its task's."""
    method: str
    """The method of a task that sends it."""
    blocks: bool
    """Whether sending blocks, so that a thread has to do it."""
    suffix = ""
    """What it appends to the name of a function that it decorates."""
    awaits = False
    """Whether its workers await what a `def` function returns."""

    @abstractmethod
    def function(self, task: Any) -> Callable[..., Any]:
        """Return the function of a task."""

    @abstractmethod
    def broker(self, task: Any) -> Any:
        """Return the broker that a task is sent with."""

    @abstractmethod
    def queue(self, task: Any) -> str | None:
        """Return the name of the queue that a task is sent to, or `None` if it has none."""

    @abstractmethod
    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        """Send a task, in the thread that calls this or in the coroutine that it returns."""

    def message_id(self, task: Any) -> str:  # noqa: ARG002
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

    def is_instrumented(self, task: Any) -> bool:  # noqa: ARG002
        """Whether an instrumentation of the engine's own makes the spans of a task's messages, in this process."""
        return False

    def local(self, task: Any) -> Callable[..., Any]:
        """Return what calls the function of a task here."""
        return task  # type: ignore[no-any-return]

    def failure(self, raised: Any) -> BaseException | None:
        """Return what failed, of what a function raised in a worker: nothing, if it asks for something else by that."""
        return raised  # type: ignore[no-any-return]


class Taskiq(Engine):
    system, classes, method, blocks = "taskiq", ("AsyncBroker", "AsyncTaskiqDecoratedTask"), "kiq", False
    suffix, awaits = "__taskiq_original", True

    def function(self, task: Any) -> Callable[..., Any]:
        return task.original_func  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.kicker().broker  # the default one, if it is a shared task

    def queue(self, task: Any) -> str | None:
        name = task.labels.get("queue_name") or getattr(self.broker(task), "queue_name", None)
        return None if name is None else str(name)

    def message_id(self, task: Any) -> str:
        return str(self.broker(task).id_generator())

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        kicker = task.kicker().with_task_id(message_id)
        kicker.labels = {**kicker.labels, **headers}  # a shared task's are its own, and stay
        return kicker.kiq(*args, **kwargs)

    def is_instrumented(self, task: Any) -> bool:
        module: Any = sys.modules.get("taskiq.middlewares.opentelemetry_middleware")
        if module is None:
            return False
        return any(isinstance(each, module.OpenTelemetryMiddleware) for each in self.broker(task).middlewares)

    def failure(self, raised: Any) -> BaseException | None:
        return None if isinstance(raised, _exceptions("taskiq.exceptions").NoResultError) else raised


class Celery(Engine):
    system, classes, method, blocks = "celery", ("Celery", "Task"), "delay", True

    def function(self, task: Any) -> Callable[..., Any]:
        return task.run  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.app

    def queue(self, task: Any) -> str | None:
        return getattr(task.app.amqp.router.route({}, task.name, task_type=task).get("queue"), "name", None)

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        # A task that runs here (`task_always_eager`) may ask for being run once more.
        with suppress(_exceptions("celery.exceptions").Retry):
            task.apply_async(args, kwargs, task_id=message_id, headers=dict(headers))

    def is_instrumented(self, task: Any) -> bool:
        module: Any = sys.modules.get("opentelemetry.instrumentation.celery")
        return (
            module is not None
            and module.CeleryInstrumentor().is_instrumented_by_opentelemetry is True
            and not task.app.conf.task_always_eager  # then no message is sent, and the instrumentation sees nothing
        )

    def failure(self, raised: Any) -> BaseException | None:
        exceptions = _exceptions("celery.exceptions")
        if isinstance(raised, exceptions.Retry):
            return raised.exc if isinstance(raised.exc, BaseException) else None
        asks = isinstance(raised, exceptions.Ignore) or (isinstance(raised, exceptions.Reject) and raised.requeue)
        return None if asks else raised


class Dramatiq(Engine):
    system, classes, method, blocks = "dramatiq", ("Broker", "Actor"), "send", True

    def function(self, task: Any) -> Callable[..., Any]:
        # An `async def` one is inside of a function that needs the event loop of a worker.
        return unwrap(task.fn, stop=iscoroutinefunction)  # type: ignore[no-any-return]

    def broker(self, task: Any) -> Any:
        return task.broker

    def queue(self, task: Any) -> str | None:
        return str(task.queue_name)

    def send(self, task: Any, message_id: str, headers: Mapping[str, str], args: Any, kwargs: Any) -> Any:
        message = task.message_with_options(args=args, kwargs=kwargs, **headers).copy(message_id=message_id)
        task.broker.enqueue(message)

    def local(self, task: Any) -> Callable[..., Any]:
        function = self.function(task)
        return function if iscoroutinefunction(function) else task

    def failure(self, raised: Any) -> BaseException | None:
        return None if isinstance(raised, _exceptions("dramatiq.errors").Retry) else raised


def _exceptions(module: str) -> Any:
    return sys.modules[module]


TASKIQ, CELERY, DRAMATIQ = Taskiq(), Celery(), Dramatiq()
_ENGINES: dict[str, Engine] = {engine.system: engine for engine in (TASKIQ, CELERY, DRAMATIQ)}


class EngineTask(NamedTuple):
    """A task of an engine, and what it was given as: itself, or its method that sends it."""

    engine: Engine
    task: Any
    by_method: bool


def engine_of_broker(given: object) -> Engine | None:
    """Return the engine whose broker (or, of Celery, app) this is."""
    return _engine(type(given), 0)


def engine_task(func: object) -> EngineTask | None:
    """Return the task of an engine that is meant by what was given to `add_task`, if it is one."""
    try:
        task: object = func.__self__ if type(func) is MethodType else func
        # Celery makes a task when it is first used.
        cls = task.__class__ if type(task).__module__ == "celery.local" else type(task)
        engine = _engine(cls, 1)
        if engine is None:
            return None
        if type(func) is not MethodType:
            return EngineTask(engine, task, False)
        return EngineTask(engine, task, True) if func.__func__ is getattr(cls, engine.method) else None
    except Exception:  # somebody's metaclass
        return None


def _engine(cls: type, kind: int) -> Engine | None:
    for base in cls.__mro__:
        engine = _ENGINES.get(base.__module__.partition(".")[0])
        if engine is not None and base.__name__ == engine.classes[kind]:
            return engine
    return None
