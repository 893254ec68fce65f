"""The way in from a FastAPI handler."""

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from fastapi import BackgroundTasks, Depends
from fastapi.dependencies.utils import get_dependant

from traced_tasks import background
from traced_tasks.options import TaskOptions


class TaskTracing(TaskOptions, frozen=True):
    """How the spans of background tasks look: the options, and a FastAPI dependency with them.

    A route's own way, as an annotation for its parameter:

    ```python
    linked = TaskTracing(propagation_style="link")
    LinkedTasks = Annotated[TracedBackgroundTasks, Depends(linked)]
    ```

    Raises:
        pydantic.ValidationError: An option is unknown or its value is of the wrong type.
    """

    __hash__ = TaskOptions.__hash__  # pydantic 2.0 makes one of its own for each frozen class

    async def __call__(self, tasks: BackgroundTasks) -> background.TracedBackgroundTasks:
        """Return the request's queue, traced with these options."""
        return background.TracedBackgroundTasks.adopt(tasks, self)


if TYPE_CHECKING:
    TracedBackgroundTasks = background.TracedBackgroundTasks
else:
    _shown = Annotated[background.TracedBackgroundTasks, Depends(TaskTracing())]
    # FastAPI before 0.128.2 refuses Depends() on a subclass of BackgroundTasks, so it must not see that this is one.
    TracedBackgroundTasks = Annotated[functools.partial(background.TracedBackgroundTasks), Depends(TaskTracing())]
    with suppress(AssertionError):

        def _handler(tasks: _shown) -> None: ...

        get_dependant(path="/", call=_handler)
        TracedBackgroundTasks = _shown
