"""FastAPI background tasks with a span of their own, in the right place.

```python
@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks):
    tasks.add_task(notify, user_id=42)
```
"""

from traced_tasks.background import TracedBackgroundTask
from traced_tasks.dependency import TaskTracing, TracedBackgroundTasks
from traced_tasks.version import __version__

__all__ = ["TaskTracing", "TracedBackgroundTask", "TracedBackgroundTasks", "__version__"]
