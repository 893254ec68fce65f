"""Applications of every shape: a task runs where FastAPI would have run it, with a span in its request's trace."""

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import anyio
import anyio.lowlevel
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from httpx import AsyncClient
from opentelemetry import baggage, context, trace
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.behaviour import postponed
from tests.conftest import Spans, collect_garbage, is_child, with_request_spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks import _background as traced_background

P = ParamSpec("P")

LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]

QUEUES = pytest.mark.parametrize("queue", [BackgroundTasks, TracedBackgroundTasks], ids=["plain", "traced"])
"""The same application with FastAPI's queue and with ours."""


def notify() -> None: ...


async def async_notify() -> None: ...


def in_one_trace(spans: Spans) -> bool:
    """Whether all spans are of one trace with one root, which is the request."""
    (root,) = [span for span in spans() if span.parent is None]
    return {span.context.trace_id for span in spans()} == {root.context.trace_id} and root not in spans.tasks()


def names(spans: Spans) -> list[str]:
    """The names of the tasks' spans, in the order of their ends, and how those that failed did."""
    told = []
    for span in spans.tasks():
        error = (span.attributes or {}).get("error.type")
        name = span.name.removeprefix("background_task ")
        told.append(f"{name} {error}" if error else name)
    return told


async def test_routers_with_prefixes(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A router in a router, each with a prefix and a dependency that queues, is one request with one queue."""

    def audit(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    def bill(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(async_notify)

    inner = APIRouter(prefix="/orders", dependencies=[Depends(bill)])
    outer = APIRouter(prefix="/api", dependencies=[Depends(audit)])

    @inner.get("/{number}")
    async def handler(number: int, tasks: TracedBackgroundTasks) -> int:
        tasks.add_task(print)
        return number

    outer.include_router(inner, prefix="/v1")
    app.include_router(outer)

    assert (await client.get("/api/v1/orders/42")).json() == 42

    assert names(spans) == ["notify", "async_notify", "print"]
    assert in_one_trace(spans)


async def test_a_mounted_application(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A mounted application's task is in the trace of the request, wherever the request's span was started."""
    mounted = FastAPI()

    @mounted.get("/orders")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    app.mount("/shop", mounted)

    assert (await client.get("/shop/orders")).status_code == 200

    assert names(spans) == ["notify"]
    assert in_one_trace(spans)


async def test_a_route_class_of_ones_own(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A route class that wraps the handler changes nothing for the tasks of its routes."""

    class Timed(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def timed(request: Request) -> Response:
                response: Response = await handle(request)
                response.headers["x-timed"] = "yes"
                return response

            return timed

    router = APIRouter(route_class=Timed)

    @router.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    app.include_router(router)

    assert (await client.get("/")).headers["x-timed"] == "yes"

    assert names(spans) == ["notify"]


async def test_a_method_as_a_handler(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A handler and a task that are methods of one object work like functions."""

    class Shop:
        def __init__(self) -> None:
            self.sold: list[int] = []

        async def checkout(self, number: int, tasks: TracedBackgroundTasks) -> None:
            tasks.add_task(self.deliver, number)

        def deliver(self, number: int) -> None:
            self.sold.append(number)

    shop = Shop()
    app.add_api_route("/checkout/{number}", shop.checkout, methods=["POST"])

    await client.post("/checkout/42")

    assert shop.sold == [42]
    assert names(spans) == ["Shop.deliver"]


@pytest.mark.parametrize("path", ["/traced", "/linked", "/dependency"])
async def test_postponed_annotations(app: FastAPI, client: AsyncClient, spans: Spans, path: str) -> None:
    """In a module with `from __future__ import annotations` the annotations mean the same."""
    app.include_router(postponed.router)

    assert (await client.get(path)).status_code == 200

    assert names(spans) == ["notify"]
    (span,) = spans.tasks()
    assert len(span.links) == (path == "/linked")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
async def test_other_methods(app: FastAPI, client: AsyncClient, spans: Spans, method: str) -> None:
    """A task follows an answer without a body as well."""

    @app.api_route("/", methods=[method], status_code=204)
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    assert (await client.request(method, "/")).status_code == 204

    assert names(spans) == ["notify"]
    assert in_one_trace(spans)


async def test_a_service_that_holds_the_queue(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A class, a dataclass and a callable object that ask for the queue queue from their methods."""

    class Mailer:
        def __init__(self, tasks: TracedBackgroundTasks) -> None:
            self.tasks = tasks

        def send(self) -> None:
            self.tasks.add_task(notify)

    @dataclass
    class Biller:
        mailer: Annotated[Mailer, Depends()]
        tasks: TracedBackgroundTasks

        def bill(self) -> None:
            self.tasks.add_task(async_notify)
            self.mailer.send()

    class Audit:
        def __call__(self, tasks: TracedBackgroundTasks) -> None:
            tasks.add_task(print)

    @app.post("/", dependencies=[Depends(Audit())])
    async def handler(biller: Annotated[Biller, Depends()]) -> None:
        biller.bill()

    await client.post("/")

    assert names(spans) == ["print", "async_notify", "notify"]
    assert in_one_trace(spans)


async def test_a_dependency_that_is_not_cached(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A dependency that runs twice in a request queues twice, in one queue."""

    def audit(tasks: TracedBackgroundTasks) -> int:
        tasks.add_task(notify)
        return len(tasks.tasks)

    @app.get("/")
    async def handler(
        first: Annotated[int, Depends(audit, use_cache=False)], second: Annotated[int, Depends(audit, use_cache=False)]
    ) -> list[int]:
        return [first, second]

    assert (await client.get("/")).json() == [1, 2]

    assert names(spans) == ["notify", "notify"]


SCOPES = ["function", "request"] if "scope" in signature(Depends).parameters else []


@pytest.mark.parametrize("scope", [None, *SCOPES])
async def test_a_dependency_with_yield(app: FastAPI, client: AsyncClient, spans: Spans, scope: str | None) -> None:
    """A `yield` dependency, of either scope, is open or closed as it is for a plain task, on both sides of `yield`."""
    orders: dict[str, list[str]] = {"/plain": [], "/traced": []}

    async def session(tasks: BackgroundTasks, request: Request) -> AsyncIterator[list[str]]:
        order = orders[request.url.path]
        order.append("open")
        yield order
        order.append("close")
        tasks.add_task(order.append, "task from behind the yield")

    def run(session: list[str]) -> None:
        session.append("task")

    depends = Depends(session, scope=scope) if scope else Depends(session)  # type: ignore[arg-type,unused-ignore]

    @app.get("/plain")
    async def plain(tasks: BackgroundTasks, session: Annotated[list[str], depends]) -> None:
        tasks.add_task(run, session)

    @app.get("/traced")
    async def traced(tasks: TracedBackgroundTasks, session: Annotated[list[str], depends]) -> None:
        tasks.add_task(run, session)

    await client.get("/plain")
    await client.get("/traced")
    collect_garbage()

    assert orders["/traced"] == orders["/plain"]
    if orders["/plain"] == ["open", "close", "task", "task from behind the yield"]:
        assert names(spans) == ["run", "list.append"]
    else:
        assert orders["/plain"] == ["open", "task", "close"]
        assert names(spans) == ["run", "list.append dropped"]


async def test_the_queue_in_a_dependency_with_yield(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A `yield` dependency whose own queue is traced can attach baggage around the handler."""
    seen: list[object] = []

    async def tenant(tasks: TracedBackgroundTasks) -> AsyncIterator[None]:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        tasks.add_task(lambda: seen.append(baggage.get_baggage("tenant")))
        yield
        context.detach(token)

    @app.get("/", dependencies=[Depends(tenant)])
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(baggage.get_baggage("tenant")))

    await client.get("/")

    assert seen[0] == "acme"
    assert len(names(spans)) == 2


async def test_an_override_by_a_double(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """In their tests users put a queue of their own in the place of every `TracedBackgroundTasks`, by one override."""
    recorded = TracedBackgroundTasks()
    ran: list[int] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, 1)

    app.dependency_overrides[TaskTracing()] = lambda: recorded

    await client.get("/")

    assert ran == []
    assert [task.args for task in recorded.tasks] == [(1,)]
    await recorded()
    assert ran == [1]


async def test_an_override_of_the_users_dependency(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A dependency that is put in the place of another can ask for the queue."""

    def mail(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(print)

    def mail_in_tests(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    @app.get("/", dependencies=[Depends(mail)])
    async def handler() -> None: ...

    app.dependency_overrides[mail] = mail_in_tests

    await client.get("/")

    assert names(spans) == ["notify"]


class AuditedTasks(traced_background.TracedBackgroundTasks):
    """A user's queue, which keeps a list of what was queued."""

    audit: list[str]

    def add_task(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        self.audit.append(func.__name__)
        super().add_task(func, *args, **kwargs)


def audited(tracing: TaskTracing) -> Any:
    """The user's dependency."""

    async def adopt(tasks: BackgroundTasks) -> AuditedTasks:
        audited_tasks = AuditedTasks.adopt(tasks, tracing)
        vars(audited_tasks).setdefault("audit", [])
        return audited_tasks

    return Depends(adopt)


# Before FastAPI 0.128.2 it refuses Depends() on a subclass of BackgroundTasks, so it is shown Any.
Audited = Annotated[Any, audited(TaskTracing())]
AuditedLinked = Annotated[Any, audited(TaskTracing(propagation_style="link"))]


async def test_a_subclass(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A user's subclass of the queue comes by a dependency of theirs, and its views are of its class."""
    queues: list[AuditedTasks] = []

    @app.get("/")
    async def handler(tasks: Audited) -> None:
        tasks.add_task(notify)
        tasks.with_options(span_name="named").add_task(async_notify)
        queues.append(tasks)

    await client.get("/")

    (queue,) = queues
    assert type(queue) is AuditedTasks
    assert queue.audit == ["notify", "async_notify"]
    assert names(spans) == ["notify", "named"]
    assert in_one_trace(spans)


async def test_a_subclass_beside_the_alias(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """In a request that has asked for the subclass, the alias is a way to the same queue."""

    def mail(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    @app.get("/")
    async def handler(tasks: AuditedLinked, dependency: Annotated[None, Depends(mail)]) -> None:
        tasks.add_task(async_notify)

    await client.get("/")

    assert names(spans) == ["notify", "async_notify"]
    assert [len(span.links) for span in spans.tasks()] == [0, 1]


async def test_a_subclass_after_a_style(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Who asked for a style of their own keeps it when somebody behind them asks for the subclass."""

    @app.get("/")
    async def handler(linked: LinkedTasks, tasks: Audited) -> None:
        linked.add_task(notify)
        tasks.add_task(async_notify)

    await client.get("/")

    assert names(spans) == ["notify", "async_notify"]
    links = [len(span.links) for span in spans.tasks()]
    assert links == [1, 0]


async def test_a_subclass_of_a_view(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A subclass can be made from what the alias gives, even if that is a view on the request's queue."""

    class Loud(traced_background.TracedBackgroundTasks):
        pass

    def loud(tasks: TracedBackgroundTasks) -> Loud:
        return Loud.adopt(tasks, TaskTracing(span_name="loud"))

    @app.get("/")
    async def handler(linked: LinkedTasks, tasks: Annotated[Any, Depends(loud)]) -> None:
        tasks.add_task(notify)

    await client.get("/")

    assert names(spans) == ["loud"]


async def test_base_http_middleware(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Under two `BaseHTTPMiddleware`, of which one queues as well, every task runs in the trace of its request."""
    seen: list[object] = []

    @app.middleware("http")
    async def tenant(request: Request, call_next: RequestResponseEndpoint) -> Response:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        response = await call_next(request)
        context.detach(token)
        return response

    class Audit(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            response = await call_next(request)
            response.background = TracedBackgroundTask(notify)
            return response

    app.add_middleware(Audit)

    def look() -> None:
        seen.append(baggage.get_baggage("tenant"))

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(look)
        tasks.add_task(async_notify)

    await client.get("/")

    assert seen == ["acme"]
    assert sorted(names(spans)) == ["async_notify", "look", "notify"]
    assert in_one_trace(spans)


class LeftResponse(JSONResponse):
    """One that leaves its background to `RunBehind`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        background, self.background = self.background, None
        await super().__call__(scope, receive, send)
        scope["left"].append(background)


class RunBehind:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = scope["left"] = []
        await self.app(scope, receive, send)
        for background in left:
            await background()


class FailBehind:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        raise LookupError("after the answer")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_middleware_that_runs_the_tasks(client: AsyncClient, app: FastAPI, spans: Spans, fails: bool) -> None:
    """Tasks that an outer middleware runs behind the application are as ever, and dropped if the application fails."""
    seen: list[object] = []
    if fails:
        app.add_middleware(FailBehind)
    app.add_middleware(RunBehind)

    def look() -> None:
        seen.append(baggage.get_baggage("tenant"))

    @app.get("/", response_class=LeftResponse)
    def handler(tasks: TracedBackgroundTasks) -> None:
        token = context.attach(baggage.set_baggage("tenant", "acme"))
        tasks.add_task(look)
        tasks.add_task(async_notify)
        context.detach(token)

    with suppress(LookupError):
        await client.get("/")
    await anyio.to_thread.run_sync(print, "")  # a worker thread may refer to what it called last
    collect_garbage()

    assert seen == ([] if fails else ["acme"])
    assert sorted(names(spans)) == (["async_notify dropped", "look dropped"] if fails else ["async_notify", "look"])
    assert in_one_trace(spans)


@QUEUES
async def test_a_middleware_that_answers_itself(app: FastAPI, client: AsyncClient, spans: Spans, queue: Any) -> None:
    """A middleware that throws the response away runs or loses the tasks as it would plain ones, and a loss is seen."""
    ran: list[str] = []

    @app.middleware("http")
    async def replace(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await call_next(request)
        return PlainTextResponse("mine")

    @app.get("/")
    async def handler(tasks: queue) -> None:
        tasks.add_task(ran.append, "task")

    assert (await client.get("/")).text == "mine"
    collect_garbage()

    assert ran == ["task"]
    assert names(spans) == ([] if queue is BackgroundTasks else ["list.append"])


async def test_pure_asgi_middleware(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """What a pure ASGI middleware attaches is there in the task, and its span may be the task's ancestor."""
    seen: list[object] = []

    class Tenant:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            token = context.attach(baggage.set_baggage("tenant", "acme"))
            with trace.get_tracer("mine").start_as_current_span("middleware"):
                await self.app(scope, receive, send)
            context.detach(token)

    app.add_middleware(Tenant)

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(baggage.get_baggage("tenant")))

    await client.get("/")

    assert seen == ["acme"]
    (span,) = spans.tasks()
    assert span.context.trace_id == spans["middleware"].context.trace_id


@pytest.mark.parametrize("sync", [True, False])
async def test_a_stream(app: FastAPI, client: AsyncClient, spans: Spans, sync: bool) -> None:
    """What the handler and its stream queue runs behind the last chunk, and a step of the stream can be its parent."""
    order: list[str] = []

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> StreamingResponse:
        def chunks() -> Iterator[str]:
            with trace.get_tracer("mine").start_as_current_span("first chunk"):
                tasks.add_task(notify)
            yield "one "
            order.append("chunk")
            yield "two"

        async def async_chunks() -> AsyncIterator[str]:
            for chunk in chunks():
                yield chunk

        tasks.add_task(order.append, "task")
        return StreamingResponse(chunks() if sync else async_chunks())

    assert (await client.get("/")).text == "one two"

    assert order == ["chunk", "task"]
    assert names(spans) == ["list.append", "notify"]
    assert is_child(spans["background_task notify"], spans["first chunk"])
    assert in_one_trace(spans)


async def test_a_file(app: FastAPI, client: AsyncClient, spans: Spans, tmp_path: Path) -> None:
    """A file is there until the task behind it removes it."""
    report = tmp_path / "report.csv"
    report.write_text("a,b")

    @app.get("/", response_class=FileResponse)
    async def handler(tasks: TracedBackgroundTasks) -> str:
        tasks.add_task(report.unlink)
        return str(report)

    @app.get("/range")
    def range_handler(tasks: TracedBackgroundTasks) -> FileResponse:
        tasks.add_task(notify)
        return FileResponse(report)

    assert (await client.get("/range", headers={"range": "bytes=0-0"})).text[:1] == "a"
    assert (await client.get("/")).text == "a,b"

    assert not report.exists()
    assert names(spans) == ["notify", "Path.unlink"]


@pytest.mark.parametrize(
    ("respond", "status"),
    [
        (lambda: Response(status_code=204), 204),
        (lambda: JSONResponse({}), 200),
        (lambda: PlainTextResponse("ok"), 200),
        (lambda: RedirectResponse("/"), 307),
    ],
)
async def test_a_response_of_ones_own(
    app: FastAPI, client: AsyncClient, spans: Spans, respond: Callable[[], Response], status: int
) -> None:
    """A `Response` that a handler returns without a background gets the queue of its request."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> Response:
        tasks.add_task(notify)
        return respond()

    assert (await client.get("/")).status_code == status

    assert names(spans) == ["notify"]
    assert in_one_trace(spans)


@QUEUES
async def test_a_response_of_many_requests(app: FastAPI, client: AsyncClient, spans: Spans, queue: Any) -> None:
    """A `Response` object that is returned twice keeps its first queue, which runs twice; the second's loss is seen."""
    ran: list[str] = []
    response = Response()

    @app.get("/{name}")
    async def handler(name: str, tasks: queue) -> Response:
        tasks.add_task(ran.append, name)
        return response

    await client.get("/one")
    await client.get("/two")

    assert ran == ["one", "one"]
    if queue is not BackgroundTasks:
        assert sorted(names(spans)) == ["list.append", "list.append", "list.append dropped"]


async def test_the_queue_as_the_background(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A handler that gives the queue to its response by hand runs it once."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> Response:
        tasks.add_task(notify)
        return Response(background=tasks)

    await client.get("/")

    assert names(spans) == ["notify"]


class SoldOutError(Exception):
    pass


async def test_a_custom_exception_handler(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """The answer of an exception handler loses the handler's tasks, which is seen, and may have one of its own."""

    @app.exception_handler(SoldOutError)
    async def sold_out(request: Request, error: SoldOutError) -> Response:
        return JSONResponse({}, 409, background=TracedBackgroundTask(notify))

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(async_notify)
        raise SoldOutError

    assert (await client.get("/")).status_code == 409
    collect_garbage()

    assert sorted(names(spans)) == ["async_notify dropped", "notify"]
    assert in_one_trace(spans)


async def test_an_invalid_request(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """What a dependency queued for a request that FastAPI then refuses is lost, which is seen."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({}, 400)

    async def audit(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)

    @app.get("/", dependencies=[Depends(audit)])
    async def handler(number: Annotated[int, Query()]) -> None: ...

    assert (await client.get("/?number=none")).status_code == 400
    collect_garbage()

    assert names(spans) == ["notify dropped"]


async def test_a_dependency_that_refuses(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A dependency that queues and then raises `HTTPException` drops its task, which is seen."""

    async def authenticate(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        raise HTTPException(401)

    @app.get("/", dependencies=[Depends(authenticate)])
    async def handler() -> None: ...

    assert (await client.get("/")).status_code == 401

    assert names(spans) == ["notify dropped"]


def make_test_client(app: ASGIApp) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one httpx or another
        from fastapi.testclient import TestClient

        return TestClient(app)


def test_the_test_client_and_lifespan_state(spans: Spans, anyio_backend: str) -> None:
    """Behind the answer of a `TestClient` the tasks are done, and the lifespan's state was alive for them."""
    alive: list[bool] = []

    class Pool:
        open = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Pool]]:
        pool = Pool()
        yield {"pool": pool}
        pool.open = False

    app = FastAPI(lifespan=lifespan)

    async def use(pool: Pool) -> None:
        await anyio.lowlevel.checkpoint()
        alive.append(pool.open)

    @app.get("/")
    def handler(request: Request, tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(use, request.state.pool)

    with make_test_client(with_request_spans(app)) as client:
        assert client.get("/").status_code == 200
        assert alive == [True]

    (span,) = spans.tasks()
    assert span.name == "background_task use"
    assert in_one_trace(spans)


def test_the_test_client_raises(spans: Spans, anyio_backend: str) -> None:
    """A failing task's exception reaches the user's test, as it does with a plain queue."""
    app = FastAPI()

    def fail() -> None:
        raise SoldOutError

    @app.get("/")
    def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(fail)
        tasks.add_task(notify)

    with pytest.raises(SoldOutError):
        make_test_client(app).get("/")

    assert names(spans) == ["fail tests.behaviour.test_shapes.SoldOutError", "notify skipped"]


async def test_two_applications(connect: Callable[[ASGIApp], httpx.AsyncClient], spans: Spans) -> None:
    """Two applications that share a router, and run at once, share nothing else."""
    router = APIRouter()
    together: list[str] = []
    both = anyio.Event()

    async def meet(name: str) -> None:
        together.append(name)
        if len(together) == 2:
            both.set()
        await both.wait()

    @router.get("/{name}")
    async def handler(name: str, tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(meet, name)

    async def get(name: str) -> None:
        app = FastAPI()
        app.include_router(router)
        await connect(with_request_spans(app)).get(f"/{name}")

    async with anyio.create_task_group() as group:
        group.start_soon(get, "one")
        group.start_soon(get, "two")

    assert sorted(together) == ["one", "two"]
    first, second = spans.tasks()
    assert first.context.trace_id != second.context.trace_id
