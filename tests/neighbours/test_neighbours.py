"""One span a task, whoever else looks: each neighbour really at work, in a process of its own, and nothing sent.

A program of `apps` sets the neighbour up as its documentation says, serves the same routes with plain and with traced
background tasks, and tells what every task saw and what was recorded.
"""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.neighbours.report import Report, Span

ROOT = Path(__file__).parents[2]
CONTRIB = "opentelemetry.instrumentation.fastapi"


def run(program: str, *arguments: str) -> Report:
    command = [sys.executable, "-m", f"tests.neighbours.apps.{program}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return Report.model_validate_json(done.stdout.splitlines()[-1])


def run_instrumented(command: str, *arguments: str) -> Report:
    """Serve `automatic` by a command that is started as OpenTelemetry's documentation says, but for the exporters."""
    scripts = Path(sys.executable).parent
    exporters = [f"--{signal}_exporter=none" for signal in ("traces", "metrics", "logs")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [scripts / "opentelemetry-instrument", *exporters, scripts / command, *arguments, "--port", port],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert (done.returncode, complaints) == (0, [])
    return Report.model_validate_json(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def check(report: Report, wrapper: str | None = None) -> None:
    """What holds beside every neighbour.

    Args:
        report: What happened.
        wrapper: Which function the neighbour puts around one that is added to a plain queue.
    """
    spans = {span.id: span for span in report.spans}
    tasks = iter(report.tasks())
    for path in report.adopted():
        added = {added.task: added for added in report.added if added.path == path}
        seen = [seen for seen in report.seen if seen.path == path]
        assert [seen.task for seen in seen] == list(added), path
        for saw in seen:
            # Exactly one span of ours, around the work, below the span that was current at add_task.
            task = next(tasks)
            wrapped = wrapper is not None and saw.task == "count_visit"
            assert task.name == f"background_task {wrapper if wrapped else saw.task}"
            assert (task.parent, task.trace) == (added[saw.task].span, added[saw.task].trace)
            assert task.parent in spans
            assert saw.span == task.id or wrapped
            assert saw.baggage == ({"tenant": "acme"} if saw.task == "notify" else {})
            assert bool(task.error) == (saw.task == "fail")

        # Beside that, all is as with plain background tasks: answers, context variables, the spans of the request.
        plain = path.replace("traced", "plain")
        assert report.answers[path] == report.answers[plain] == 200
        for saw, other in zip(seen, (seen for seen in report.seen if seen.path == plain), strict=True):
            assert (saw.task, saw.customer, saw.variables) == (other.task, other.customer, other.variables)
        assert requests(report, path) == requests(report, plain)
    assert not list(tasks)

    failed = [path for path in report.answers if "failing" in path]
    warned = [line for line in report.logged if line.startswith("traced_tasks: ")]
    logged = [line for line in report.logged if line not in warned]
    assert logged == ["uvicorn.error: Exception in ASGI application\n"] * len(failed)
    assert [" failed with LookupError after " in line for line in warned] == [True] * (len(failed) // 2)


def requests(report: Report, path: str) -> list[str]:
    """The spans of a request without those of its background tasks."""
    return [
        f"{span.kind} {span.scope} {span.name}".replace("traced", "plain")
        for span in report.of(path)
        if span.scope != "traced_tasks" and not is_plain_task(span)
    ]


def is_plain_task(span: Span) -> bool:
    return span.name == "fastapi.background_task" or span.name.startswith("BackgroundTask ")


def servers(report: Report, path: str) -> list[str]:
    """Who has recorded the request."""
    return [span.scope for span in report.of(path) if span.kind == "SERVER"]


def plain_tasks(report: Report, path: str) -> list[str]:
    """Who has recorded the plain background tasks."""
    return [span.scope for span in report.of(path) if is_plain_task(span)]


def of_kind(entries: list[list[Any]], kind: str) -> list[list[str]]:
    """What a neighbour recorded of one kind of routes, without that word."""
    return sorted([str(value).replace(kind, "") for value in entry] for entry in entries if kind in entry[0])


def test_fastapi_telemetry() -> None:
    """Beside FastAPI's own telemetry, which gives each plain task a span as well."""
    report = run("fastapi_telemetry")

    check(report)
    assert servers(report, "/traced/1") == servers(report, "/plain/1") == ["fastapi"]
    assert plain_tasks(report, "/plain/1") == ["fastapi"] * 3
    assert plain_tasks(report, "/traced/1") == []


def test_contrib() -> None:
    """Beside FastAPIInstrumentor, which is on, on after the first request, and off again, and off in another app."""
    report = run("contrib")

    check(report)
    for number, instrumented in {
        "before": False,
        "beside": False,
        "1": True,
        "during": False,  # the middleware was built at the first request
        "rebuilt": True,
        "after": False,
    }.items():
        scope = CONTRIB if instrumented else "fastapi"
        assert servers(report, f"/traced/{number}") == servers(report, f"/plain/{number}") == [scope], number
        assert plain_tasks(report, f"/traced/{number}") == []
    # It patches all apps of the process, so where it is not at work a plain task has two spans.
    assert plain_tasks(report, "/plain/1") == [CONTRIB] * 3
    assert plain_tasks(report, "/plain/beside") == [CONTRIB, "fastapi"] * 3


def test_contrib_everywhere() -> None:
    """Beside FastAPIInstrumentor for every app of the process, while it is on, and when it is off again."""
    report = run("contrib_everywhere")

    check(report)
    for number, scope in {"before": "fastapi", "during": CONTRIB, "beside": "fastapi", "after": "fastapi"}.items():
        assert servers(report, f"/traced/{number}") == servers(report, f"/plain/{number}") == [scope], number
        assert plain_tasks(report, f"/traced/{number}") == []
    assert plain_tasks(report, "/plain/during") == [CONTRIB] * 3
    assert plain_tasks(report, "/plain/after") == ["fastapi"] * 3


@pytest.mark.parametrize(
    "command",
    [["uvicorn", "tests.neighbours.apps.automatic:app"], ["fastapi", "run", "tests/neighbours/apps/automatic.py"]],
    ids=["uvicorn", "fastapi run"],
)
def test_opentelemetry_instrument(command: list[str]) -> None:
    """Under `opentelemetry-instrument`, whatever serves the app, all is as if the app had instrumented itself."""
    report = run_instrumented(*command)

    check(report)
    for path in ("/traced/1", "/plain/1"):
        assert servers(report, path) == [CONTRIB]
    assert plain_tasks(report, "/plain/1") == [CONTRIB] * 3
    assert plain_tasks(report, "/traced/1") == []


def test_logfire() -> None:
    """Beside Logfire, which is FastAPIInstrumentor and a tracer provider of its own kind."""
    report = run("logfire_sdk")

    check(report)
    assert servers(report, "/traced/1") == servers(report, "/plain/1") == [CONTRIB]
    assert plain_tasks(report, "/plain/1") == [CONTRIB] * 3
    assert plain_tasks(report, "/traced/1") == []


def test_ddtrace() -> None:
    """Beside ddtrace and an SDK: ddtrace records the request, and of a traced task nothing.

    A plain task has two root spans there, because ddtrace patches `add_task` for FastAPI and for Starlette. So has what
    was in the queue before it was adopted, and the span of such a task is named after ddtrace's wrapper.
    """
    report = run("ddtrace_auto")

    check(report, wrapper="traced_task")
    assert report.neighbour["patched"]
    assert len(report.neighbour["requests"]) == len(report.answers)
    assert of_kind(report.neighbour["requests"], "/traced") == of_kind(report.neighbour["requests"], "/plain")
    assert ["POST /traced-failing/{number}", "fastapi.request", 1] in report.neighbour["requests"]
    assert report.neighbour["tasks"] == {"count_visit": 8, "send_receipt": 3, "notify": 3, "fail": 1, "traced_task": 15}
    for saw in report.seen:
        plain = saw.path.startswith("/plain") or saw.task == "count_visit"
        assert saw.watched["ddtrace"] == (saw.task if plain else None)


def test_ddtrace_as_tracer_provider() -> None:
    """With ddtrace as OpenTelemetry's tracer provider, the span of a task is one of ddtrace's, and current there."""
    report = run("ddtrace_otel")

    check(report, wrapper="traced_task")
    assert report.neighbour["patched"]
    for path in ("/traced/1", "/plain/1"):
        assert [span.kind for span in report.of(path) if span.name.startswith("POST")] == ["server", "fastapi.request"]
    for saw in report.seen:
        plain = saw.path.startswith("/plain") or saw.task == "count_visit"
        assert saw.watched["ddtrace"] == (saw.task if plain else f"background_task {saw.task}")


def test_new_relic() -> None:
    """Beside New Relic: each task is a non-web transaction there, and its failure an error, traced or not."""
    report = run("newrelic_agent")

    check(report)
    assert report.neighbour["patched"]
    plain, traced = report.neighbour["plain"], report.neighbour["traced"]
    shop = "tests.neighbours.apps.shop:"
    assert plain == {
        **{f"WebTransaction/Function/{shop}plain{kind}": 1 for kind in ("", "_sync", "_failing")},
        f"OtherTransaction/Function/{shop}count_visit": 3,
        f"OtherTransaction/Function/{shop}send_receipt": 2,
        f"OtherTransaction/Function/{shop}notify": 2,
        f"OtherTransaction/Function/{shop}fail": 1,
        "OtherTransaction/all": 8,
        f"Errors/OtherTransaction/Function/{shop}fail": 1,
        "Errors/all": 1,
        "Errors/allOther": 1,
    }
    assert traced == {name.replace("plain", "traced"): count for name, count in plain.items()}
    for saw in report.seen:
        assert saw.watched["transaction"] == shop + saw.task


def test_sentry() -> None:
    """Beside Sentry: tasks run within the transaction of their request, and a failure is one error of it.

    Sentry has no span of a background task, plain or traced.
    """
    report = run("sentry")

    check(report)
    assert {"fastapi", "starlette"} < set(report.neighbour["integrations"])
    transactions = report.neighbour["transactions"]
    assert len(transactions) == len(report.answers)
    assert of_kind(transactions, "/traced") == of_kind(transactions, "/plain")
    assert ["/traced/{number}", "http.server", 0] in transactions
    assert {saw.watched["transaction"] for saw in report.seen} == {"http.server"}
    assert report.neighbour["errors"] == [
        ["/plain-failing/{number}", "LookupError"],
        ["/traced-failing/{number}", "LookupError"],
    ]


def test_sentry_with_opentelemetry() -> None:
    """With Sentry's integration for OpenTelemetry, the failure of a traced task is one error, of the task's span."""
    report = run("sentry", "otlp")

    check(report)
    assert {"fastapi", "otlp", "starlette"} < set(report.neighbour["integrations"])
    assert report.neighbour["errors"] == [
        ["/plain-failing/{number}", "LookupError"],
        ["/traced-failing/{number}", "LookupError"],
    ]
    of_error = report.neighbour["traces_of_errors"]["/traced-failing/{number}"]
    (task,) = [span for span in report.tasks() if span.error]
    assert (of_error["trace_id"], of_error["span_id"]) == (task.trace, task.id)


def test_elastic_apm() -> None:
    """Beside Elastic APM: tasks run within the transaction of their request, and a failure is one error of it."""
    report = run("elastic")

    check(report)
    transactions, errors = report.neighbour["transactions"], report.neighbour["errors"]
    assert len(transactions) == len(report.answers)
    assert of_kind(transactions, "/traced") == of_kind(transactions, "/plain")
    assert ["POST /traced/{number}", "HTTP 2xx", 0] in transactions
    assert all(saw.watched["transaction"] for saw in report.seen)
    assert errors == [
        [f"POST /{kind}-failing/{{number}}", "LookupError", "tests.neighbours.apps.shop.fail"]
        for kind in ("plain", "traced")
    ]


def test_prometheus() -> None:
    """Beside prometheus-fastapi-instrumentator: each request is counted once."""
    report = run("prometheus")

    check(report)
    assert dict(report.neighbour["requests"]) == {
        f'http_requests_total{{handler="/{kind}/{{number}}",method="POST",status="2xx"}}': count
        for kind, count in {
            "plain": "2.0",
            "traced": "2.0",
            "plain-sync": "1.0",
            "traced-sync": "1.0",
            "plain-failing": "1.0",
            "traced-failing": "1.0",
        }.items()
    }


def test_context_variables() -> None:
    """A task sees what structlog and asgi-correlation-id keep in context variables, as a plain one does."""
    report = run("context_variables")

    check(report)
    for saw in report.seen:
        number = saw.path.rpartition("/")[2]
        asynchronous = saw.path.startswith(("/plain/", "/traced/"))
        assert saw.watched["correlation_id"] == f"request {number}"
        # What a `def` handler binds stays in its worker thread.
        assert saw.watched["structlog"] == {"number": number, **({"bound": "in handler"} if asynchronous else {})}
