"""A page to look at: the requests of this process, and the background work behind them."""

from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from opentelemetry import trace
from opentelemetry.trace import TracerProvider
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

try:
    from traced_tasks.live._answer import Answers
    from traced_tasks.live._recorder import Recorder
except ModuleNotFoundError as exc:
    raise ImportError(
        "traced_tasks.live shows what the SDK of OpenTelemetry records: pip install opentelemetry-sdk"
    ) from exc

__all__ = ["TasksPage"]

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_NO_PROVIDER = (
    "TasksPage shows what an SDK's tracer provider records, and %s is none. Set one before (opentelemetry.trace."
    "set_tracer_provider(opentelemetry.sdk.trace.TracerProvider())), or give it: TasksPage(provider). Where FastAPI's "
    "auto_configure sets it, at the start of the lifespan, mount the page there."
)
_CLOSED = (
    "This page answers only a client on the same machine that asks for localhost, and through no proxy. "
    "To open it: TasksPage(allow_remote=True), behind a guard of your own.\n"
)
# The page's own requests have no `Origin`. Another website's do, and a CORS middleware may let it read the answers.
_FOREIGN = "This page answers no other website.\n"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# With one of these a client may be anywhere, whatever its address is said to be.
_PROXIED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class TasksPage:
    """A live page of the requests with background work, an ASGI application to mount.

    ```python
    app.mount("/tasks", TasksPage())
    ```

    It shows what the provider records from now on: each request, when it was answered, its tasks and the spans inside
    of them, and what failed or never ran. It answers only a client on the same machine that asks for `localhost`,
    `127.0.0.1` or `[::1]`, and with 403 everybody else.

    Args:
        provider: The tracer provider of the SDK whose spans it shows. Default: the global one.
        keep: How many requests with background work it keeps.
        trace_url: Where a trace is to be found in another place, with `{trace_id}` for its 32 hex digits:
            `"http://localhost:16686/trace/{trace_id}"`. Default: no link.
        allow_remote: Whether it answers everybody. Then it needs a guard of yours.

    Raises:
        RuntimeError: There is no provider of the SDK.
        ValueError: `keep` is less than 1, or `trace_url` is no address over HTTP, or without `{trace_id}`.
    """

    def __init__(
        self,
        provider: TracerProvider | None = None,
        *,
        keep: int = 200,
        trace_url: str | None = None,
        allow_remote: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is a number of requests, 1 or more, not {keep!r}")
        if trace_url is not None and (
            "{trace_id}" not in trace_url or not trace_url.startswith(("http://", "https://"))
        ):
            raise ValueError(f"trace_url is like 'http://localhost:16686/trace/{{trace_id}}', not {trace_url!r}")
        given = trace.get_tracer_provider() if provider is None else provider
        add_span_processor = getattr(given, "add_span_processor", None)
        if add_span_processor is None:
            raise RuntimeError(_NO_PROVIDER % type(given).__name__)
        recorder = Recorder(keep)
        add_span_processor(recorder)
        self._answers = Answers(recorder, trace_url)
        self._allow_remote = allow_remote
        routes = [Route("/data", self._data), *(Route(path, _file(*of)) for path, of in _FILES.items())]
        self._app = Starlette(routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        is_http = scope["type"] == "http"
        if is_http and "origin" in Headers(scope=scope):
            await PlainTextResponse(_FOREIGN, 403)(scope, receive, send_guarded)
        elif is_http and not self._allow_remote and not _is_local(scope):
            await PlainTextResponse(_CLOSED, 403)(scope, receive, send_guarded)
        else:
            if is_http:  # by its end, which is there whether or not a proxy has stripped the root path
                scope = {**scope, "root_path": "", "path": "/" + scope["path"].rpartition("/")[2]}
            await self._app(scope, receive, send_guarded)

    async def _data(self, request: Request) -> Response:
        # Not in a thread: tasks may have taken them all, which is when one looks here.
        response = Response(self._answers.answer(request.query_params.get("known", "")), media_type="application/json")
        if request.scope.get("http_version", "").startswith("1"):
            response.headers["connection"] = "close"  # of several workers, another one may answer the next time
        return response


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = (Path(__file__).parent / "static" / name).read_bytes()

    async def file(request: Request) -> Response:  # noqa: ARG001
        return Response(content, media_type=media_type)

    return file


def _is_local(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    client = scope.get("client")
    hosts = headers.getlist("host")
    if client is None or len(hosts) != 1 or any(name in headers for name in _PROXIED):
        return False
    host = hosts[0].rpartition(":")[0] if hosts[0].rpartition(":")[2].isdecimal() else hosts[0]
    return _is_loopback(client[0]) and (
        host.lower() == "localhost" or _is_loopback(host.removeprefix("[").removesuffix("]"))
    )


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
