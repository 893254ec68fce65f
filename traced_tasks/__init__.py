"""FastAPI background tasks with a span of their own, in the right place."""

from traced_tasks._background import TracedBackgroundTask
from traced_tasks._dependency import TaskTracing, TracedBackgroundTasks
from traced_tasks._version import __version__

__all__ = ["TaskTracing", "TracedBackgroundTask", "TracedBackgroundTasks", "__version__"]
