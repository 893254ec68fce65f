"""End to end: real uvicorn, real HTTP."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

from tests.conftest import Spans, is_child, with_request_spans
from traced_tasks import TracedBackgroundTasks


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(with_request_spans(app), port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("is_async", [True, False])
def test_the_story_of_issue_4251(spans: Spans, is_async: bool) -> None:
    """The HTTP call of a background task lies in the task's span, which lies in the trace of its request."""
    partner = FastAPI(telemetry={"tracing": False})

    @partner.get("/mail")
    async def mail() -> None: ...

    app = FastAPI(telemetry={"operation_spans": False})
    instrumentor = HTTPXClientInstrumentor()
    answered = threading.Event()

    def task(send: Callable[[], object]) -> Callable[..., object]:
        def notify() -> None:
            assert answered.wait(10)
            send()

        async def async_notify() -> None:
            notify()

        return async_notify if is_async else notify

    with serve(partner) as partner_url, httpx.Client(verify=False) as http, serve(app) as url:
        instrumentor.instrument_client(http)

        @app.post("/checkout")
        async def checkout(tasks: TracedBackgroundTasks) -> dict[str, bool]:
            tasks.add_task(task(lambda: http.get(f"{partner_url}/mail")))
            return {"ok": True}

        response = httpx.post(f"{url}/checkout", verify=False)
        answered.set()

    assert response.json() == {"ok": True}
    request, call = spans["POST /checkout"], spans["GET"]
    (span,) = spans.tasks()
    assert is_child(span, request)
    assert is_child(call, span)
    assert request.end_time is not None
    assert call.start_time is not None
    assert call.start_time > request.end_time


def test_requests_at_once(spans: Spans) -> None:
    """Of many requests at once, each task's span is the child of its own request's."""
    app = FastAPI(telemetry={"operation_spans": False})

    async def async_notify(number: int) -> None:
        trace.get_current_span().set_attribute("number", number)

    def notify(number: int) -> None:
        trace.get_current_span().set_attribute("number", number)

    @app.post("/checkout/{number}")
    def checkout(number: int, tasks: TracedBackgroundTasks) -> None:
        trace.get_current_span().set_attribute("number", number)
        tasks.add_task(async_notify, number)
        tasks.add_task(notify, number)

    with serve(app) as url, httpx.Client(verify=False) as http:
        threads = [
            threading.Thread(target=lambda number=number: http.post(f"{url}/checkout/{number}")) for number in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    requests = {span.context.span_id: span for span in spans() if span.name.startswith("POST")}
    assert len(requests) == 20
    assert len(spans.tasks()) == 40
    for span in spans.tasks():
        assert span.parent is not None
        request = requests[span.parent.span_id]
        assert (span.attributes or {})["number"] == (request.attributes or {})["number"]
