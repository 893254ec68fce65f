import os
from base64 import b64encode
from secrets import compare_digest

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from traced_tasks.live import TasksPage

trace.set_tracer_provider(TracerProvider())


class BasicAuth:
    def __init__(self, app: ASGIApp, user: str, password: str) -> None:
        self.app = app
        token = b64encode(f"{user}:{password}".encode())
        self.expected = b"Basic " + token

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        given = Headers(scope=scope).get("authorization", "")
        if compare_digest(given.encode(), self.expected):
            await self.app(scope, receive, send)
        else:
            asks = {"WWW-Authenticate": 'Basic realm="tasks"'}
            response = PlainTextResponse("Log in.\n", 401, asks)
            await response(scope, receive, send)


app = FastAPI()
page = TasksPage(allow_remote=True)
app.mount(
    "/tasks", BasicAuth(page, "admin", os.environ["TASKS_PASSWORD"])
)
