"""FastAPI background tasks with a span of their own, in the right place."""

from traced_tasks._background import TracedBackgroundTask
from traced_tasks._dependency import TaskTracing, TracedBackgroundTasks
from traced_tasks._version import __version__
from traced_tasks.unfinished import report_unfinished_tasks, unfinished_tasks

__all__ = [
    "TaskTracing",
    "TracedBackgroundTask",
    "TracedBackgroundTasks",
    "__version__",
    "report_unfinished_tasks",
    "unfinished_tasks",
]
