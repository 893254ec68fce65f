"""Who the page answers, with what headers, and what it tells, by real requests to an application that mounts it."""

import json
import math
import sys
from datetime import UTC, datetime
from importlib import import_module
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import TracerProvider as ApiProvider
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocketDisconnect

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks.demo.server import serve
from traced_tasks.live import TasksPage, _answer

LOCAL = ("127.0.0.1", 50000)


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider(shutdown_on_exit=False)


@pytest.fixture
def app(provider: TracerProvider) -> FastAPI:
    """An application that mounts the page, whose spans all go to `provider`."""
    app = FastAPI(telemetry={"tracer_provider": provider})
    app.mount("/tasks", TasksPage(provider))
    tracing = TaskTracing(tracer_provider=provider)

    @app.post("/checkout/{order}")
    async def checkout(order: int, tasks: Annotated[TracedBackgroundTasks, tracing]) -> None:
        tasks.add_task(notify, order)

    return app


async def notify(order: int) -> None: ...


def client(app: Any, host: str = "localhost", client: tuple[str, int] | None = LOCAL) -> TestClient:
    return TestClient(app, base_url=f"http://{host}", client=client)  # type: ignore[arg-type]


def cards(app: Any, known: str = "") -> list[dict[str, Any]]:
    """What the page is told."""
    answer = client(app).get("/tasks/data", params={"known": known})
    return answer.json()["cards"]  # type: ignore[no-any-return]


def test_it_shows_a_request_and_its_task(app: FastAPI) -> None:
    """A request with a task is a card, with the request's method, route and status, and the task's span."""
    client(app).post("/checkout/31337001")
    (card,) = cards(app)
    route = {"http.request.method": "POST", "http.route": "/checkout/{order}", "http.response.status_code": "200"}
    assert route.items() <= card["root"]["attributes"].items()
    (task,) = card["spans"]
    assert (task["name"], task["kind"], task["outcome"]) == ("background_task notify", "task", "done")
    assert task["attributes"]["code.function.name"] == f"{__name__}.notify"
    assert "31337001" not in json.dumps(card["spans"])


def test_requests_without_background_work_are_not_shown(app: FastAPI) -> None:
    """Neither a request without a task is shown, nor those of the page itself."""
    for path in ("/nothing", "/tasks/", "/tasks/data"):
        client(app).get(path)
    assert cards(app) == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.9.8.7:80", "[::1]", "[::1]:8000"])
@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_it_answers_a_client_on_the_same_machine(app: FastAPI, host: str, address: str) -> None:
    """A client on loopback that asks for a loopback host by name gets the page."""
    assert client(app, client=(address, 1)).get("/tasks/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("192.168.0.7", {"host": "localhost"}),
        ("::ffff:192.168.0.7", {"host": "localhost"}),
        ("testclient", {"host": "localhost"}),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"host": "localhost.evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:80"}),
        ("127.0.0.1", {"host": "evil.example:80"}),
        ("127.0.0.1", {"host": "0.0.0.0"}),
        ("127.0.0.1", {"host": ""}),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "127.0.0.1"}),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=127.0.0.1"}),
        ("127.0.0.1", {"host": "localhost", "via": "1.1 proxy"}),
    ],
)
@pytest.mark.parametrize("path", ["/tasks/", "/tasks/data", "/tasks/page.js", "/tasks/nothing"])
def test_it_refuses_everybody_else(app: FastAPI, address: str, headers: dict[str, str], path: str) -> None:
    """Another machine, another name of this one, and a proxy get 403, with one line that says how to open the page."""
    answer = client(app, client=(address, 1)).get(path, headers=headers)
    assert answer.status_code == 403
    assert answer.headers["cache-control"] == "no-store"
    assert answer.text.count("\n") == 1
    assert "TasksPage(allow_remote=True)" in answer.text


async def test_it_refuses_a_request_that_does_not_say_from_where(app: FastAPI) -> None:
    """A request over a Unix socket has no client, and one of HTTP/1.0 no host: both get 403, and two hosts too."""
    statuses = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    host = (b"host", b"localhost")
    for client, headers in ((None, [host]), (LOCAL, []), (LOCAL, [host, (b"host", b"evil.example")])):
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": headers,
            "client": client,
            "query_string": b"",
        }
        await TasksPage(TracerProvider(shutdown_on_exit=False))(scope, _receive, send)
    assert statuses == [403, 403, 403]


async def _receive() -> Any: ...


def test_allow_remote_opens_it(provider: TracerProvider) -> None:
    """With `allow_remote` it answers everybody, and with the same headers."""
    page = TasksPage(provider, allow_remote=True)
    answer = client(page, "shop.example", ("203.0.113.9", 1)).get("/")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript"), ("data", "application/json")],
)
def test_its_headers(app: FastAPI, path: str, media_type: str) -> None:
    """Nothing is stored, nothing is run that is not a file of the page, and nothing is taken from elsewhere."""
    answer = client(app).get(f"/tasks/{path}")
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_files_need_nothing_from_elsewhere(app: FastAPI) -> None:
    """The page, its style and its script have no address of another host, and no inline script or style."""
    text = "".join(client(app).get(f"/tasks/{file}").text for file in ("", "page.css", "page.js"))
    assert "//" not in text.replace("// ", "")
    assert "style=" not in text
    assert "<script>" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["", "data"])
def test_it_only_reads(app: FastAPI, method: str, path: str) -> None:
    """Every method but GET and HEAD is refused."""
    assert client(app).request(method, f"/tasks/{path}").status_code == 405
    assert client(app).head(f"/tasks/{path}").status_code == 200


@pytest.mark.parametrize("known", ["x", "x:y", ",,:", "1:" + "9" * 5000, ":::", "\ud7ff"])
def test_it_takes_any_question(app: FastAPI, known: str) -> None:
    """What is no answer of this process is no knowledge: everything is told."""
    client(app).post("/checkout/42")
    process = client(app).get("/tasks/data").json()["process"]
    assert len(cards(app, known)) == 1
    assert len(cards(app, f"{process}:{known}")) == 1


def test_only_what_is_new_is_told(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has heard an answer is told of what came behind it, and of nothing else."""
    client(app).post("/checkout/1")
    first = client(app).get("/tasks/data").json()
    monkeypatch.setattr(_answer, "_OVERLAP", 0)  # what another thread noted meanwhile is told again
    known = f"{first['process']}:{client(app).get('/tasks/data').json()['until']}"
    assert cards(app, known) == []
    client(app).post("/checkout/2")
    assert [card["number"] for card in cards(app, known)] > [first["cards"][0]["number"]]


def test_a_long_answer_comes_in_parts(provider: TracerProvider) -> None:
    """An answer has a limit: what is behind it comes with the next question, the newest first."""
    page = TasksPage(provider)
    tracer = provider.get_tracer("traced_tasks")
    for _ in range(200):
        with tracer.start_as_current_span("background_task export") as span:
            span.set_attributes({str(number): "x" * 150 for number in range(16)})
    here = client(page)
    answer = here.get("/data")
    told = answer.json()
    numbers, longest = [card["number"] for card in told["cards"]], len(answer.text)
    while told["more"] is not None:
        answer = here.get("/data", params={"known": f"{told['process']}:-1:{told['more']}"})
        told = answer.json()
        numbers += [card["number"] for card in told["cards"]]
        longest = max(longest, len(answer.text))
    assert numbers == sorted(range(1, 201), reverse=True)
    assert longest < 150_000


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, 10**5000, "\ud800", "x" * 100_000, b"\xff", ("a", "b" * 1000), {"nested": {"a": 1}}, [], None],
    ids=lambda value: type(value).__name__,
)
def test_any_attribute_is_json(provider: TracerProvider, value: Any) -> None:
    """Whatever an attribute is, the answer is JSON that a browser reads, and no longer than it may be."""
    page = TasksPage(provider)
    tracer = provider.get_tracer("traced_tasks")
    with tracer.start_as_current_span("background_task odd", attributes={"odd": value}):
        running = client(page).get("/data").text
    for text in (running, client(page).get("/data").text):
        (card,) = json.loads(text, parse_constant=_refuse)["cards"]
        assert len(card["spans"][0]["attributes"].get("odd", "")) <= 200


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_no_query_string_is_told(provider: TracerProvider) -> None:
    """Of a span that is no task's the path and the host are told, and no query string: there may be secrets in it."""
    page = TasksPage(provider)
    tracer, tasks = provider.get_tracer("http"), provider.get_tracer("traced_tasks")
    old = {
        "http.method": "GET",
        "http.target": "/mail?token=secret",
        "http.url": "http://mail.example/mail?token=secret",
    }
    new = {"http.request.method": "GET", "url.full": "https://u:secret@mail.example/?token=secret", "url.path": "/"}
    with (
        tracer.start_as_current_span("GET /checkout", attributes=old),
        tasks.start_as_current_span("background_task f"),
    ):
        for attributes in (old, new, {"url.full": "http://[secret"}):
            with tracer.start_as_current_span("GET", attributes=attributes):
                pass
    answer = client(page).get("/data")
    assert "secret" not in answer.text
    (card,) = answer.json()["cards"]
    hosts = [span["attributes"].get("server.address") for span in card["spans"] if span["kind"] == "span"]
    assert hosts == ["mail.example", "mail.example", None]
    assert card["root"]["attributes"]["http.target"] == "/mail"


def test_a_link_is_checked() -> None:
    """`trace_url` is an address over HTTP with a place for the trace id, and `keep` a number of requests."""
    provider = TracerProvider(shutdown_on_exit=False)
    for wrong in ("javascript:alert('{trace_id}')", "http://localhost/trace", ""):
        with pytest.raises(ValueError, match="trace_url is like"):
            TasksPage(provider, trace_url=wrong)
    for keep in (0, -1):
        with pytest.raises(ValueError, match="keep is a number of requests"):
            TasksPage(provider, keep=keep)
    page = TasksPage(provider, trace_url="http://localhost:16686/trace/{trace_id}")
    assert client(page).get("/data").json()["trace_url"] == "http://localhost:16686/trace/{trace_id}"


def test_it_needs_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the SDK is not installed, the import says what to install."""
    for name in [name for name in sys.modules if name.startswith("traced_tasks.live")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ImportError, match="pip install opentelemetry-sdk"):
        import_module("traced_tasks.live")


@pytest.mark.parametrize("given", [trace.NoOpTracerProvider(), trace.ProxyTracerProvider()])
def test_it_needs_a_provider_of_the_sdk(given: ApiProvider) -> None:
    """Without a provider that records there is nothing to show: an error where the page is made says what to do."""
    with pytest.raises(RuntimeError, match=r"set_tracer_provider.*TasksPage\(provider\).*auto_configure"):
        TasksPage(given)


def test_the_global_provider(spans: Spans) -> None:
    """Without an argument it shows what the global provider records."""
    app = FastAPI()
    app.mount("/tasks", TasksPage())

    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify, 42)

    client(app).post("/checkout")
    assert [span["name"] for span in cards(app)[0]["spans"]] == ["background_task notify"]


@pytest.mark.parametrize("prefix", ["/tasks", "/admin/background"])
def test_on_a_real_server(prefix: str) -> None:
    """With uvicorn it is there under any path, and each answer ends its connection, so that all workers are heard."""
    provider = TracerProvider(shutdown_on_exit=False)
    app = FastAPI()
    app.mount(prefix, TasksPage(provider))
    with serve(app) as url, httpx.Client(verify=False) as http:
        page = http.get(f"{url}{prefix}", follow_redirects=True)
        assert page.url.path == f"{prefix}/"
        assert 'href="page.css"' in page.text
        assert http.get(f"{url}{prefix}/data").headers["connection"] == "close"


def test_a_websocket_is_closed(app: FastAPI) -> None:
    """There is nothing to be had over a websocket."""
    with pytest.raises(WebSocketDisconnect), client(app).websocket_connect("/tasks/data"):
        raise AssertionError("it was accepted")


def test_a_task_that_waits_is_told_with_its_request(app: FastAPI, provider: TracerProvider) -> None:
    """A task that has been added and not started is there, in the card of its request, while its handler still runs."""
    told: list[Any] = []

    @app.post("/slow")
    async def slow(tasks: Annotated[TracedBackgroundTasks, TaskTracing(tracer_provider=provider)]) -> None:
        tasks.add_task(notify, 42)
        told.append(await anyio.to_thread.run_sync(lambda: client(app).get("/tasks/data").json()))

    client(app).post("/slow")
    (waiting,) = told[0]["waiting"]
    (card,) = told[0]["cards"]
    assert (waiting["name"], waiting["card"]) == ("background_task notify", card["number"])
    assert (card["root"]["end"], card["spans"]) == (None, [])
    assert client(app).get("/tasks/data").json()["waiting"] == []


def test_looks_at_what_waits_are_few(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks through the objects of the process, so the next one comes after many times what it took."""
    monkeypatch.setattr(_answer, "_LOOK", 1_000_000)
    page = TasksPage(provider)
    with provider.get_tracer("http").start_as_current_span("POST /checkout"):
        first = TracedBackgroundTask(notify, 42)
    without_a_request = TracedBackgroundTask(notify, 43)
    assert len(client(page).get("/data").json()["waiting"]) == 1
    first.skip("it is not wanted")
    assert len(client(page).get("/data").json()["waiting"]) == 1
    without_a_request.skip("it is not wanted")
    assert client(page).get("/data").json()["waiting"] == []


async def test_http_2() -> None:
    """HTTP/2 knows no `connection` header, and has none."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "http_version": "2", "method": "GET", "path": "/data", "headers": headers, "client": LOCAL}
    await TasksPage(TracerProvider(shutdown_on_exit=False))({**scope, "query_string": b""}, _receive, send)
    assert sent[0]["status"] == 200
    assert b"connection" not in dict(sent[0]["headers"])


@pytest.mark.parametrize("allow_remote", [False, True])
def test_another_website_reads_nothing_by_cors(provider: TracerProvider, allow_remote: bool) -> None:
    """Where the application lets every website read its answers, those of the page are not among them."""
    app = FastAPI()
    app.mount("/tasks", TasksPage(provider, allow_remote=allow_remote))
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    answer = client(app).get("/tasks/data", headers={"origin": "http://evil.example"})
    assert (answer.status_code, answer.text) == (403, "This page answers no other website.\n")


@pytest.mark.parametrize("name", [None, 42])
def test_a_span_without_a_proper_name(provider: TracerProvider, name: Any) -> None:
    """A name that is no text, which the SDK takes, does not end the page."""
    page = TasksPage(provider)
    with provider.get_tracer("traced_tasks").start_as_current_span("background_task odd"):
        provider.get_tracer("sql").start_span(name).end()
    answer = client(page).get("/data")
    assert answer.status_code == 200
    assert None not in [span["end"] for span in answer.json()["cards"][0]["spans"]]


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1, tzinfo=UTC), math.nan, "now", 1.5e18])
def test_a_span_without_a_proper_time(provider: TracerProvider, moment: Any) -> None:
    """A time that is no number of nanoseconds, which the SDK takes, does not end the page either."""
    page = TasksPage(provider)
    span = provider.get_tracer("traced_tasks").start_span("background_task odd", start_time=moment)
    running = client(page).get("/data")
    span.end(moment)
    for answer in (running, client(page).get("/data")):
        (card,) = json.loads(answer.text, parse_constant=_refuse)["cards"]
        assert isinstance(card["spans"][0]["start"], float)


def test_many_that_wait(provider: TracerProvider) -> None:
    """Of the tasks of a request that wait the first are told, and how many there are."""
    page = TasksPage(provider)
    with provider.get_tracer("http").start_as_current_span("POST /checkout"):
        tasks = [TracedBackgroundTask(notify, number) for number in range(100)]
    told = client(page).get("/data").json()
    assert len(told["waiting"]) == 20
    assert told["waits"] == {"1": 100}
    for task in tasks:
        task.skip("it is not wanted")
