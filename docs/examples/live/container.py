from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.middleware.trustedhost import TrustedHostMiddleware

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())

app = FastAPI()
page = TasksPage(allow_remote=True)
app.mount(
    "/tasks",
    TrustedHostMiddleware(page, allowed_hosts=["localhost", "127.0.0.1"]),
)
