from fastapi import FastAPI, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from traced_tasks import TracedBackgroundTasks


class ShopHeader:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-shop"] = "main street"
            await send(message)

        await self.app(scope, receive, send_with_header)


app = FastAPI()
app.add_middleware(ShopHeader)


async def count_download(name: str) -> None: ...


@app.get("/catalogue")
async def catalogue(tasks: TracedBackgroundTasks) -> Response:
    tasks.add_task(count_download, "catalogue")
    return Response(b"0" * 20_000_000)
