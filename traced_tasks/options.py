"""What can be chosen about a task."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Link, Span, SpanKind, TracerProvider
from opentelemetry.util.types import AttributeValue
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from starlette._utils import is_async_callable

PropagationStyle = Literal["child", "link", "none"]
OnError = Literal["stop", "continue"]


def _attribute_value(value: AttributeValue) -> AttributeValue:
    match value:
        case None | str() | bool() | int() | float() | bytes():
            pass
        case Mapping() if all(isinstance(key, str) for key in value):  # pyright: ignore[reportUnnecessaryIsInstance]
            for item in value.values():
                _attribute_value(item)
        case Sequence():
            for item in value:
                _attribute_value(item)
        case _:
            raise ValueError(
                "a span attribute is a str, bool, int, float, bytes, None, or a sequence or mapping of these, "
                f"not {value!r}"
            )
    return value


def _links(links: Any) -> Any:
    return (*links,) if isinstance(links, list) else links


def _task_hook(hook: Any) -> Any:
    if is_async_callable(hook):
        raise ValueError("a task_hook is called, not awaited: an async function would never run")
    return hook


if TYPE_CHECKING:
    Attributes = Mapping[str, AttributeValue]
else:
    # pydantic cannot read OpenTelemetry's type, which refers to itself by name in a module of its own.
    Attributes = Mapping[str, Annotated[Any, AfterValidator(_attribute_value)]]


if TYPE_CHECKING:
    Links = Sequence[Link]
else:
    # A list or a tuple. pydantic's own check of a Sequence, which takes no other either, takes 1 us.
    Links = Annotated[tuple[Link, ...], BeforeValidator(_links)]


if TYPE_CHECKING:
    from traced_tasks.background import TracedBackgroundTask

    TaskHook = Callable[[Span, TracedBackgroundTask], None]
else:
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
    tracer_provider: TracerProvider | None
    meter_provider: MeterProvider | None


class TaskOptions(
    BaseModel, title="TaskTracing", frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True
):
    """How the span of a background task looks: frozen, hashable, and strict about names and types.

    Raises:
        pydantic.ValidationError: An option is unknown or its value is of the wrong type.
    """

    propagation_style: PropagationStyle = "child"
    """Where the span belongs, seen from the span that was current at `add_task`.

    `"child"`: in the same trace, as its child. `"link"`: in a trace of its own, whose root has a span link to it.
    `"none"`: in a trace of its own, without a link. Baggage and all other values of the captured context are kept in
    all three. The term and its values are those of OpenTelemetry's ActiveJob and Sidekiq instrumentations.
    """

    span_name: str | None = None
    """The name of the span. `None`: `background_task {function}`."""

    span_kind: SpanKind | None = None
    """The kind of the span. `None`: `INTERNAL` for `"child"`, `CONSUMER` for `"link"` and `"none"`."""

    attributes: Attributes = Field(default_factory=dict)
    """Attributes for the span, on top of (and, on the same key, instead of) those that are always there."""

    links: Links = ()
    """Span links, next to the one that `propagation_style="link"` makes."""

    record_exception: bool = True
    """Whether the exception of a failing task is recorded.

    `False`: neither its message nor its stack trace leaves the process, only its class, as `error.type`.
    """

    on_error: OnError = "stop"
    """What a failure of the task means for those behind it in the queue.

    `"stop"`, as in Starlette: they are skipped. `"continue"`: they run, and after the queue one `ExceptionGroup`
    carries all failures in order. A cancellation always stops.
    """

    task_hook: TaskHook | None = None
    """Called with the span that has started and its task, to take attributes from `task.func`, `task.args` and
    `task.kwargs`. Also for the span of a task that was lost. Its error is logged and harms nothing."""

    tracer_provider: TracerProvider | None = None
    """The provider of the tracer. `None`: OpenTelemetry's global one, as it is when the task starts."""

    meter_provider: MeterProvider | None = None
    """The provider of the meter. `None`: OpenTelemetry's global one, as it is when the task starts."""

    def __hash__(self) -> int:
        # FastAPI hashes its dependencies, several times a request. pydantic's own hash would meet the dict in
        # `attributes`; equal options still have equal hashes without it.
        return hash((self.propagation_style, self.span_name))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # FastAPI asks each dependency of a request for it. pydantic takes 1 us to say that there is none.
            if name == "__wrapped__":
                raise AttributeError(name)
            return super().__getattr__(name)

    def merge(self, changes: TaskOptionsDict) -> Self:
        """Return these options with `changes`: `attributes` are merged, `links` appended, all else is replaced.

        Raises:
            pydantic.ValidationError: As for the class.
        """
        checked = vars(TaskOptions(**changes))
        update = {name: checked[name] for name in changes}
        if "attributes" in update:
            update["attributes"] = {**self.attributes, **checked["attributes"]}
        if "links" in update:
            update["links"] = (*self.links, *checked["links"])
        merged = self.model_copy()
        vars(merged).update(update)  # which model_copy(update=update) takes 0.3 us longer to do
        return merged
