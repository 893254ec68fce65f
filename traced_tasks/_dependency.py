"""The way in from a FastAPI handler."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Unpack

from fastapi import APIRouter, BackgroundTasks, Depends

from traced_tasks import _background, _foreign
from traced_tasks._options import TaskOptions, TaskOptionsDict


class TaskTracing(TaskOptions, _foreign.Depends, frozen=True):
    """The options for tracing background tasks. It is also a FastAPI dependency.

    Give a route its own options by the annotation of its parameter:

    ```python
    LinkedTasks = Annotated[TracedBackgroundTasks, TaskTracing(propagation_style="link")]
    ```

    Raises:
        TypeError: An option was given without its name.
        pydantic.ValidationError: An option is unknown or its value is of the wrong type.
    """

    if TYPE_CHECKING:

        def __init__(self, **options: Unpack[TaskOptionsDict]) -> None: ...
    else:
        # A dependency of FastAPI's is a dataclass. What it has as fields are no options.
        dependency: ClassVar = property(lambda self: self)
        use_cache: ClassVar = True
        scope: ClassVar = None
        max_concurrency: ClassVar = None

    __eq__ = TaskOptions.__eq__
    __hash__ = TaskOptions.__hash__  # pydantic 2.0 makes one of its own for each frozen class

    async def __call__(self, tasks: BackgroundTasks) -> _background.TracedBackgroundTasks:
        """Return the request's queue, traced with these options."""
        return _background.TracedBackgroundTasks.adopt(tasks, self)


if TYPE_CHECKING:
    TracedBackgroundTasks = _background.TracedBackgroundTasks
else:
    _shown = Annotated[_background.TracedBackgroundTasks, Depends(TaskTracing())]
    # FastAPI before 0.128.2 refuses Depends() on a subclass of BackgroundTasks, so it must not see that this is one.
    TracedBackgroundTasks = Annotated[partial(_background.TracedBackgroundTasks), Depends(TaskTracing())]

    def _handler(tasks: _shown) -> None: ...

    with suppress(AssertionError):
        APIRouter().add_api_route("/", _handler)
        TracedBackgroundTasks = _shown
