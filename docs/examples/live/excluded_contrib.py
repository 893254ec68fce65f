import logging

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())


def is_wanted(record: logging.LogRecord) -> bool:
    return " /tasks/data" not in record.getMessage()


logging.getLogger("uvicorn.access").addFilter(is_wanted)

app = FastAPI()
app.mount("/tasks", TasksPage())
FastAPIInstrumentor.instrument_app(app, excluded_urls="/tasks/")
