"""What can be chosen about a task."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, TypedDict

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue
from pydantic import AfterValidator, BaseModel, Strict
from starlette.background import BackgroundTask

from traced_tasks._engines import engine_of_broker

PropagationStyle = Literal["child", "link", "none"]
OnError = Literal["stop", "continue"]


def _attribute_value(value: AttributeValue) -> AttributeValue:
    match value:
        case None | str() | bool() | int() | float() | bytes():
            pass
        case Mapping() if all(isinstance(key, str) for key in value):  # pyright: ignore[reportUnnecessaryIsInstance]
            _attribute_value([*value.values()])
        case Sequence():
            for item in value:
                _attribute_value(item)
        case _:
            allowed = "a str, bool, int, float, bytes, None, or a sequence or mapping of these"
            raise ValueError(f"a span attribute is {allowed}, not {value!r}")
    return value


def _task_hook(hook: Any) -> Any:
    if BackgroundTask(hook).is_async:
        raise ValueError("a task_hook is called, not awaited: an async function would never run")
    return hook


def _broker(broker: Any) -> Any:
    if engine_of_broker(broker) is None:
        # Its type only: a URL has a password in it. And no ValueError, of which pydantic shows the value.
        given = f"{type(broker).__module__}.{type(broker).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"a broker is one of Taskiq's or of Dramatiq's, or Celery's app, not an object of type {given}")
    return broker


if TYPE_CHECKING:
    from celery import Celery  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
    from dramatiq import Broker as DramatiqBroker
    from taskiq import AsyncBroker

    from traced_tasks._background import TracedBackgroundTask

    Broker: TypeAlias = AsyncBroker | Celery | DramatiqBroker
    Attributes = Mapping[str, AttributeValue]
    Links = Sequence[Link]
    TaskHook = Callable[[Span, TracedBackgroundTask], None]
else:
    Broker = Annotated[Any, AfterValidator(_broker)]
    # pydantic cannot read OpenTelemetry's type, which refers to itself by name in a module of its own.
    Attributes = Mapping[str, Annotated[Any, AfterValidator(_attribute_value)]]
    Links = Annotated[tuple[Link, ...], Strict(False)]
    TaskHook = Annotated[Callable[..., None], AfterValidator(_task_hook)]


class TaskOptionsDict(TypedDict, total=False):
    """The options of [`TaskTracing`][traced_tasks.TaskTracing] as keywords, for `with_options`."""

    propagation_style: PropagationStyle
    span_name: str | None
    span_kind: SpanKind | None
    attributes: Attributes
    links: Links
    record_exception: bool
    on_error: OnError
    task_hook: TaskHook | None
    context_variables: bool
    broker: Broker | None
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None


class TaskOptions(
    BaseModel, title="TaskTracing", frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
):
    """How a background task is traced: frozen, hashable, and strict about names and types."""

    propagation_style: PropagationStyle = "child"
    """Where the span belongs, seen from the span that was current at `add_task`.

    `"child"`: in the same trace, as its child. `"link"`: in a trace of its own, whose root has a span link to it.
    `"none"`: in a trace of its own, without a link. Baggage and all other values of the captured context are kept in
    all three. The term and its values are those of OpenTelemetry's ActiveJob and Sidekiq instrumentations."""

    span_name: str | None = None
    """The name of the span. `None`: `background_task {function}`."""

    span_kind: SpanKind | None = None
    """The kind of the span. `None`: `INTERNAL` for `"child"`, `CONSUMER` for the others. A hand-over is `PRODUCER`."""

    attributes: Attributes = {}
    """Attributes for the span, on top of (and, on the same key, instead of) those that are always there."""

    links: Links = ()
    """Span links, next to the one that `propagation_style="link"` makes."""

    record_exception: bool = True
    """Whether the exception of a failing task is recorded.

    `False`: neither its message nor its stack trace leaves the process, only its class, as `error.type`."""

    on_error: OnError = "stop"
    """What a failure of the task means for those behind it in the queue.

    `"stop"`, as in Starlette: they are skipped. `"continue"`: they run, and after the queue one `ExceptionGroup`
    carries all failures in order. A cancellation always stops."""

    task_hook: TaskHook | None = None
    """Called in the task's thread with the span that has started and the task, to take attributes from its `args` and
    `kwargs`. Also for the span of a task that was lost. Its error is logged and harms nothing."""

    context_variables: bool = False
    """Whether the task sees every context variable (structlog's, loguru's, the application's) as it was at `add_task`.

    `False`: as in Starlette, where nothing is left of what a `def` handler has set. `True`: all but what the event
    loop's libraries keep for themselves. They are back to what they were when the task ends."""

    broker: Broker | None = None
    """The Taskiq broker, Celery app or Dramatiq broker to whose workers its tasks are handed over.

    That is, those that are tasks of this very broker, given as the task itself or as its `kiq`, `delay` or `send`.
    Every other function runs in this process."""

    tracer_provider: TracerProvider | None = None
    """The provider of the tracer. `None`: OpenTelemetry's global one, as it is when the task starts."""

    meter_provider: MeterProvider | None = None
    """The provider of the meter. `None`: OpenTelemetry's global one, as it is at `add_task`."""

    if not TYPE_CHECKING:

        def __init__(self, *args: Any, **options: Any) -> None:
            if args:
                raise TypeError(f"the options are keywords, TaskTracing(propagation_style='link'), not {args[0]!r}")
            super().__init__(**options)

        def __getattr__(self, name: str) -> Any:
            # FastAPI asks each dependency for `__wrapped__`, in each request, and pydantic takes 1 us to say no.
            raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        # FastAPI calls a dependency once for all that are equal to it, and {"retry": 1} == {"retry": True}.
        return (
            isinstance(other, TaskOptions)
            and super().__eq__(other) is True
            and sorted(map(repr, self.attributes.items())) == sorted(map(repr, other.attributes.items()))
        )

    def __hash__(self) -> int:
        # pydantic's own would meet the dict in `attributes`. Equal options have equal hashes without it, too.
        return hash((self.propagation_style, self.span_name))

    def merge(self, changes: TaskOptionsDict) -> Self:
        """Return these options with `changes`: `attributes` are merged, `links` appended, all else is replaced."""
        checked = TaskOptions(**changes)
        update = {name: getattr(checked, name) for name in changes}
        if "attributes" in update:
            update["attributes"] = {**self.attributes, **checked.attributes}
        if "links" in update:
            update["links"] = (*self.links, *checked.links)
        return self.model_copy(update=update)


def checked(tracing: TaskOptions | None) -> TaskOptions:
    """Return the options that were given, or the default ones. Raise a `TypeError` if they are none."""
    if tracing is not None and not isinstance(tracing, TaskOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"tracing is a TaskTracing, not {tracing!r}")
    return _DEFAULT if tracing is None else tracing


_DEFAULT = TaskOptions()
