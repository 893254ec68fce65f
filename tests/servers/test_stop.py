"""Servers that are stopped, by a signal or by a task, while tasks are running and queued."""

import re
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.servers.serving import Server, is_listening, serve, wait_for

UVICORN = ["uvicorn-h11-asyncio", "uvicorn-httptools-uvloop"]
REPORT = {"REPORT": "yes"}


def patience(name: str, seconds: int) -> tuple[str, ...]:
    """The options for how long a server waits for its tasks when it stops."""
    return "--timeout-graceful-shutdown" if name in UVICORN else "--graceful-timeout", str(seconds)


def code(name: str, by: signal.Signals) -> int:
    """The exit code of a server that a signal stops."""
    return -by if name in UVICORN and by == signal.SIGTERM else 0


def reports(server: Server) -> list[str]:
    """What the report of unfinished tasks says, without its numbers of seconds."""
    lines = [str(line.get("warning", line.get("info", ""))) for line in server.records()]
    return [re.sub(r"\d+\.\d s", "n s", line) for line in lines if "nfinished" in line]


def at(when: str, *running: str) -> str:
    """What it says when tasks run, each with one behind it."""
    tasks = [
        f"tests.servers.app.{name} (running for n s), tests.servers.app.behind (waiting for n s)" for name in running
    ]
    number = len(running)
    return f"Unfinished background tasks at {when}: {number} running, {number} waiting: {', '.join(tasks)}."


def ended(when: str) -> str:
    return f"The background tasks that were unfinished at {when} have ended."


def run_slow(server: Server, order: str) -> None:
    """Have a task run until it is released, and one wait behind it."""
    assert server.get(f"/{order.split('-')[0]}/slow?order={order}").is_success
    wait_for(lambda: server.ran(order))


ORDERS = "plain", "plain-sync", "traced", "traced-sync"


@pytest.mark.parametrize(
    ("name", "by", "report"),  # each two of them together
    [
        (UVICORN[0], signal.SIGTERM, {}),
        (UVICORN[0], signal.SIGINT, REPORT),
        (UVICORN[1], signal.SIGTERM, REPORT),
        (UVICORN[1], signal.SIGINT, {}),
        ("hypercorn-asyncio", signal.SIGTERM, {}),
        ("hypercorn-asyncio", signal.SIGINT, REPORT),
    ],
    ids=lambda each: (
        each if isinstance(each, str) else each.name if isinstance(each, signal.Signals) else "".join(each)
    ),
)
def test_a_patient_server(name: str, by: signal.Signals, report: dict[str, str], tmp_path: Path) -> None:
    """A server that waits for its tasks lets them end, and those behind them; a report says so and changes nothing."""
    # Uvicorn waits without end of its own accord, and hypercorn has signals for its application in one process only.
    options = () if name in UVICORN else ("--workers", "0", *patience(name, 25))
    assert_patient(name, by, report, tmp_path, *options)


@pytest.mark.parametrize(
    ("name", "report"),
    [("gunicorn", {}), ("gunicorn", REPORT), ("hypercorn-asyncio", {}), ("hypercorn-trio", {})],
    ids=["gunicorn", "gunicorn-report", "hypercorn-asyncio", "hypercorn-trio"],
)
def test_a_patient_supervisor(name: str, report: dict[str, str], tmp_path: Path) -> None:
    """So does a server whose master stops its worker at a SIGTERM."""
    assert_patient(name, signal.SIGTERM, report, tmp_path, *patience(name, 25))


def assert_patient(name: str, by: signal.Signals, report: dict[str, str], folder: Path, *options: str) -> None:
    with serve(name, folder, *options, **report) as server:
        for order in ORDERS:
            run_slow(server, order)
        server.process.send_signal(by)
        if report:
            wait_for(lambda: reports(server) == [at(by.name, "slow", "sync_slow")])
        server.release()

        assert server.process.wait(25) == code(name, by)
        for order in ORDERS:
            assert server.ran(order) == ["slow starts", "slow", "behind"]
        assert server.told("traced") == [("slow", None), ("behind", None)]
        assert server.told("traced-sync") == [("sync_slow", None), ("behind", None)]
        assert reports(server) == ([at(by.name, "slow", "sync_slow"), ended(by.name)] if report else [])
        assert server.records(lifespan="stopped")


@pytest.mark.parametrize(
    ("name", "report"),
    [
        *((name, report) for name in UVICORN for report in ({}, REPORT)),
        ("hypercorn-asyncio", {}),
        ("hypercorn-trio", {}),
    ],
)
def test_an_impatient_server(name: str, report: dict[str, str], tmp_path: Path) -> None:
    """Of tasks that a server cuts short when it stops, one is cancelled and one skipped, and all is told in time."""
    with serve(name, tmp_path, *patience(name, 2 if report else 1), **report) as server:
        for order in ("plain", "traced"):
            run_slow(server, order)

        assert server.terminate() == code(name, signal.SIGTERM)
        assert server.ran("traced") == server.ran("plain") == ["slow starts"]
        (slow, error), behind = server.told("traced")
        assert slow == "slow"
        assert error in ("asyncio.exceptions.CancelledError", "trio.Cancelled")
        assert behind == ("behind", "skipped")
        failure, loss = [line for line in warnings(server) if "nfinished" not in line]
        assert f"slow failed with {error} after" in failure
        assert "behind was skipped" in loss
        assert reports(server) == ([at("SIGTERM", "slow"), ended("SIGTERM")] if report else [])
        assert server.records(lifespan="stopped")


def warnings(server: Server) -> list[str]:
    return [str(line["warning"]) for line in server.records() if "warning" in line]


@pytest.mark.parametrize("name", UVICORN)
def test_a_task_that_waits_for_a_thread(name: str, tmp_path: Path) -> None:
    """When all threads are busy at a stop, the task that waits for one was not cut short: it is skipped."""
    with serve(name, tmp_path, *patience(name, 1), THREADS="1") as server:
        run_slow(server, "traced-sync")
        server.get("/traced/slow?order=waits-sync")

        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(server.told("waits-sync")) == 2)
        server.release()
        server.process.wait(25)

        assert server.ran("waits-sync") == []
        assert server.told("waits-sync") == [("sync_slow", "skipped"), ("behind", "skipped")]
        cause = "it was cut short by asyncio.exceptions.CancelledError before its function was called"
        assert cause in "".join(warnings(server))


@pytest.mark.parametrize("report", [{}, REPORT], ids=["", "report"])
def test_a_thread_that_the_time_of_grace_leaves_behind(report: dict[str, str], tmp_path: Path) -> None:
    """No server can cancel a thread. A task in one goes with the process without a span, and a last line names it."""
    with serve(UVICORN[0], tmp_path, *patience(UVICORN[0], 2 if report else 1), **report) as server:
        run_slow(server, "traced-sync")

        assert server.terminate() == -signal.SIGTERM
        assert server.ran("traced-sync") == ["slow starts"]
        assert server.told("traced-sync") == [("behind", "skipped")]
        last = "Unfinished background tasks at the end of the application: 1 running, 0 waiting: "
        last += "tests.servers.app.sync_slow (running for n s)."
        assert reports(server) == ([at("SIGTERM", "sync_slow"), last] if report else [])


@pytest.mark.parametrize("report", [{}, REPORT], ids=["", "report"])
def test_a_killed_worker(report: dict[str, str], tmp_path: Path) -> None:
    """What gunicorn kills when its time is over was reported when that began; only the spans from before are there."""
    seconds = 5 if report else 1  # on a busy machine the worker may take a while to report
    with serve("gunicorn", tmp_path, *patience("gunicorn", seconds), **report) as server:
        server.get("/traced/checkout?order=before")
        wait_for(lambda: server.told("before") == [("notify", None), ("behind", None)])
        run_slow(server, "traced")

        assert server.terminate() == 0
        assert server.ran("traced") == ["slow starts"]
        assert server.told("traced") == []
        assert reports(server) == ([at("SIGTERM", "slow")] if report else [])


@pytest.mark.parametrize(
    ("by", "report"),
    [(signal.SIGINT, {}), (signal.SIGINT, REPORT), (signal.SIGQUIT, REPORT)],
    ids=["SIGINT", "SIGINT-report", "SIGQUIT-report"],
)
def test_a_signal_that_a_worker_ignores(by: signal.Signals, report: dict[str, str], tmp_path: Path) -> None:
    """At SIGINT and SIGQUIT gunicorn sends its worker SIGQUIT, which that ignores, and later kills it: no line."""
    with serve("gunicorn", tmp_path, *patience("gunicorn", 2), **report) as server:
        run_slow(server, "traced")
        server.process.send_signal(by)

        assert server.process.wait(25) == 0
        assert server.told("traced") == []
        assert reports(server) == []
        assert not server.records(lifespan="stopped")


@pytest.mark.parametrize(
    ("option", "by", "report"),
    [
        ("--workers", signal.SIGTERM, {}),
        *((option, by, REPORT) for option in ("--workers", "--reload") for by in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_a_report_behind_a_supervisor(option: str, by: signal.Signals, report: dict[str, str], tmp_path: Path) -> None:
    """Uvicorn's supervisors pass each signal on as SIGTERM, and the process with the tasks reports that."""
    options = (option, "2") if option == "--workers" else (option, "--reload-dir", str(tmp_path))
    with serve(UVICORN[0], tmp_path, *options, **report) as server:
        run_slow(server, "traced")
        server.process.send_signal(by)
        if report:
            wait_for(lambda: reports(server) == [at("SIGTERM", "slow")])
        server.release()

        assert server.process.wait(25) == 0
        assert server.ran("traced") == ["slow starts", "slow", "behind"]
        assert reports(server) == ([at("SIGTERM", "slow"), ended("SIGTERM")] if report else [])


@pytest.mark.parametrize("report", [{}, REPORT], ids=["", "report"])
def test_a_second_interrupt(report: dict[str, str], tmp_path: Path) -> None:
    """Uvicorn cancels all at a second SIGINT: the first was reported, and the spans say what was cut short."""
    with serve(UVICORN[0], tmp_path, **report) as server:
        run_slow(server, "traced")
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: not is_listening(server.port))
        wait_for(lambda: reports(server) == ([at("SIGINT", "slow")] if report else []))
        server.process.send_signal(signal.SIGINT)

        assert server.process.wait(25) == 0
        assert server.told("traced") == [("slow", "asyncio.exceptions.CancelledError"), ("behind", "skipped")]
        if not report:
            assert reports(server) == []
            return
        first, last = reports(server)
        assert first == at("SIGINT", "slow")
        # Nothing says whether the application or its tasks are cancelled first.
        assert last in (at("the end of the application", "slow"), ended("SIGINT"))


@pytest.mark.parametrize(
    ("name", "queues"),
    [(UVICORN[0], ["plain", "traced"]), ("hypercorn-trio", ["plain"]), ("hypercorn-trio", ["traced"])],
)
def test_a_task_that_exits(name: str, queues: list[str], tmp_path: Path) -> None:
    """A task that raises `SystemExit` does to the server what a plain one does, and the spans say so."""
    with serve(name, tmp_path) as server:
        for queue in queues:
            server.get(f"/{queue}/exit?order={queue}")
            wait_for(partial(server.records, done=f"order={queue}"))
            if name == "hypercorn-trio":  # uvicorn survives it
                server.process.wait(25)
            else:
                assert server.get("/collect").is_success

            assert server.ran(queue) == []
            assert server.told(queue) == ([("leave", "SystemExit"), ("behind", "skipped")] if queue == "traced" else [])


def test_an_exporter_that_hangs(tmp_path: Path) -> None:
    """An exporter that hangs behind a batch processor holds up neither answers, nor tasks, nor the server's end."""
    with serve(UVICORN[1], tmp_path, HANGING="yes") as server:
        server.get("/traced/checkout?order=one")
        wait_for(lambda: server.records(exporter="hangs"))
        server.get("/traced/checkout?order=two")
        wait_for(lambda: server.ran("two") == ["notify", "behind"])

        assert server.terminate() == -signal.SIGTERM
