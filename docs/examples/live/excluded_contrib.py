from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())

app = FastAPI()
app.mount("/tasks", TasksPage())
FastAPIInstrumentor.instrument_app(app, excluded_urls="/tasks/")
