import logging
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())


def is_page(scope: MutableMapping[str, Any]) -> bool:
    return bool(scope["path"].startswith("/tasks/"))


def is_wanted(record: logging.LogRecord) -> bool:
    return " /tasks/data" not in record.getMessage()


logging.getLogger("uvicorn.access").addFilter(is_wanted)

app = FastAPI(telemetry={"exclude": is_page})
app.mount("/tasks", TasksPage())
