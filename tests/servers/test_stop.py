"""Servers that are stopped, by a signal or by a task, while tasks are running and queued."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.serving import Server, serve, wait_for

SERVERS = ["uvicorn-h11-asyncio", "uvicorn-httptools-uvloop", "hypercorn-asyncio", "hypercorn-trio", "gunicorn"]


def patience(name: str, seconds: int) -> tuple[str, str]:
    """The option for how long a server waits for its tasks when it stops."""
    option = "--timeout-graceful-shutdown" if name.startswith("uvicorn") else "--graceful-timeout"
    return option, str(seconds)


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync"])
@pytest.mark.parametrize("name", SERVERS)
def test_a_patient_server(name: str, sync: bool, tmp_path: Path) -> None:
    """A server that waits for its tasks when it stops lets them end, and those behind them; each has its span."""
    suffix = "sync" if sync else ""
    with serve(name, tmp_path, *patience(name, 25)) as server:
        for queue in ("plain", "traced"):
            server.get(f"/{queue}/slow?order={queue}{suffix}")
        wait_for(lambda: len(server.records(ran="slow starts")) == 2)

        server.process.send_signal(signal.SIGTERM)
        server.release()
        server.process.wait(25)

        for queue in ("plain", "traced"):
            assert server.ran(queue + suffix) == ["slow starts", "slow", "behind"]
        assert server.told(f"traced{suffix}") == [("sync_slow" if sync else "slow", None), ("behind", None)]
        assert server.records(lifespan="stopped")


@pytest.mark.parametrize("name", [name for name in SERVERS if name != "gunicorn"])
def test_an_impatient_server(name: str, tmp_path: Path) -> None:
    """Of tasks that a server cuts short when it stops, one is cancelled and one skipped, and both are told in time."""
    with serve(name, tmp_path, *patience(name, 1)) as server:
        for queue in ("plain", "traced"):
            server.get(f"/{queue}/slow?order={queue}")
        wait_for(lambda: len(server.records(ran="slow starts")) == 2)

        server.terminate()

        assert server.ran("traced") == server.ran("plain") == ["slow starts"]
        (slow, error), behind = server.told("traced")
        assert slow == "slow"
        assert error in ("asyncio.exceptions.CancelledError", "trio.Cancelled")
        assert behind == ("behind", "skipped")
        failure, loss = [line["warning"] for line in server.records() if "warning" in line]
        assert f"slow failed with {error} after" in failure
        assert "behind was skipped" in loss
        assert server.records(lifespan="stopped")


@pytest.mark.parametrize("name", ["uvicorn-h11-asyncio", "uvicorn-httptools-uvloop"])
def test_a_task_that_waits_for_a_thread(name: str, tmp_path: Path) -> None:
    """When all threads are busy at a stop, the task that waits for one was not cut short: it is skipped."""
    with serve(name, tmp_path, *patience(name, 1), THREADS="1") as server:
        server.get("/traced/slow?order=runs-sync")
        wait_for(lambda: len(server.records(ran="slow starts")) == 1)
        server.get("/traced/slow?order=waits-sync")

        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(server.told("waits-sync")) == 2)
        server.release()
        server.process.wait(25)

        assert server.ran("waits-sync") == []
        assert server.told("waits-sync") == [("sync_slow", "skipped"), ("behind", "skipped")]
        warnings = "".join(str(line.get("warning")) for line in server.records())
        assert "it was cut short by asyncio.exceptions.CancelledError before its function was called" in warnings


def test_a_killed_worker(tmp_path: Path) -> None:
    """What gunicorn kills tells nothing more; the spans from before are there."""
    with serve("gunicorn", tmp_path, *patience("gunicorn", 1)) as server:
        server.get("/traced/checkout?order=before")
        server.get("/traced/slow?order=traced")
        wait_for(lambda: server.ran("traced"))

        server.terminate()

        assert server.told("before") == [("notify", None), ("behind", None)]
        assert server.ran("traced") == ["slow starts"]


@pytest.mark.parametrize(("name", "survives"), [("uvicorn-h11-asyncio", True), ("hypercorn-trio", False)])
@pytest.mark.parametrize("queue", ["plain", "traced"])
def test_a_task_that_exits(name: str, survives: bool, queue: str, tmp_path: Path) -> None:
    """A task that raises `SystemExit` does to the server what a plain one does, and the spans say so."""
    with serve(name, tmp_path) as server:
        server.get(f"/{queue}/exit?order={queue}")
        wait_for(lambda: server.records(done=f"order={queue}"))
        if survives:
            assert server.get("/collect").is_success
        else:
            server.process.wait(25)

        assert server.ran(queue) == []
        assert server.told(queue) == ([("leave", "SystemExit"), ("behind", "skipped")] if queue == "traced" else [])


def test_an_exporter_that_hangs(tmp_path: Path) -> None:
    """An exporter that hangs behind a batch processor holds up neither answers, nor tasks, nor the server's end."""
    with serve("uvicorn-httptools-uvloop", tmp_path, HANGING="yes") as server:
        server.get("/traced/checkout?order=one")
        wait_for(lambda: server.records(exporter="hangs"))
        server.get("/traced/checkout?order=two")
        wait_for(lambda: server.ran("two") == ["notify", "behind"])

        assert server.terminate() == -signal.SIGTERM


def reports(server: Server) -> list[str]:
    """What the report of unfinished tasks says, without its numbers of seconds."""
    lines = [str(line.get("warning", line.get("info", ""))) for line in server.records()]
    return [re.sub(r"\d+\.\d s", "n s", line) for line in lines if "nfinished" in line]


def at(when: str, task: str = "slow") -> str:
    tasks = f"tests.servers.app.{task} (running for n s), tests.servers.app.behind (waiting for n s)"
    return f"Unfinished background tasks at {when}: 1 running, 1 waiting: {tasks}."


def ended(when: str) -> str:
    return f"The background tasks that were unfinished at {when} have ended."


def plain_and_reported(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folders and environments: without and with the report."""
    for name, environment in (("plain", {}), ("reported", {"REPORT": "yes"})):
        (folder / name).mkdir()
        yield folder / name, environment


PATIENT = {
    **dict.fromkeys(("uvicorn-h11-asyncio", "uvicorn-httptools-uvloop"), ()),
    "hypercorn-asyncio": ("--workers", "0", "--graceful-timeout", "25"),
    "gunicorn": ("--graceful-timeout", "25"),
}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", PATIENT)
def test_a_report(name: str, by: signal.Signals, tmp_path: Path) -> None:
    """A signal is reported at once, and so is the end of the tasks; the server stops as it does without."""
    if (name, by) == ("gunicorn", signal.SIGINT):
        return  # its worker is told by another signal: see `test_a_signal_that_a_worker_ignores`
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve(name, folder, *PATIENT[name], **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            server.process.send_signal(by)
            if environment:
                wait_for(lambda: reports(server) == [at(by.name)])
            server.release()
            codes.append(server.process.wait(25))
            assert server.ran("one") == ["slow starts", "slow", "behind"]
            assert reports(server) == ([at(by.name), ended(by.name)] if environment else [])
    assert codes[0] == codes[1]


def is_closed(server: Server) -> bool:
    """Whether it has stopped to listen."""
    try:
        server.open("/").close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("option", ["--workers", "--reload"])
def test_a_report_behind_a_supervisor(option: str, by: signal.Signals, tmp_path: Path) -> None:
    """Uvicorn's supervisors pass each signal on as SIGTERM, and the process with the tasks reports that."""
    options = (option, "2") if option == "--workers" else (option, "--reload-dir", str(tmp_path))
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve("uvicorn-h11-asyncio", folder, *options, **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            server.process.send_signal(by)
            if environment:
                wait_for(lambda: reports(server) == [at("SIGTERM")])
            server.release()
            codes.append(server.process.wait(25))
            assert server.ran("one") == ["slow starts", "slow", "behind"]
            assert reports(server) == ([at("SIGTERM"), ended("SIGTERM")] if environment else [])
    assert codes == [0, 0]


@pytest.mark.parametrize("name", ["uvicorn-h11-asyncio", "uvicorn-httptools-uvloop"])
def test_a_report_before_the_time_of_grace_is_over(name: str, tmp_path: Path) -> None:
    """A task that is cut short was reported at the signal, has its span, and its end is told."""
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve(name, folder, *patience(name, 1), **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            codes.append(server.terminate())
            assert server.told("one") == [("slow", "asyncio.exceptions.CancelledError"), ("behind", "skipped")]
            assert reports(server) == ([at("SIGTERM"), ended("SIGTERM")] if environment else [])
    assert codes == [-signal.SIGTERM] * 2


def test_a_thread_that_the_time_of_grace_leaves_behind(tmp_path: Path) -> None:
    """No server can cancel a thread. A task in one goes with the process without a span, and a last line names it."""
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve("uvicorn-h11-asyncio", folder, *patience("uvicorn", 1), **environment) as server:
            server.get("/traced/slow?order=one-sync")
            wait_for(lambda: server.ran("one-sync"))
            codes.append(server.terminate())
            assert server.ran("one-sync") == ["slow starts"]
            assert server.told("one-sync") == [("behind", "skipped")]
            last = "Unfinished background tasks at the end of the application: 1 running, 0 waiting: "
            last += "tests.servers.app.sync_slow (running for n s)."
            assert reports(server) == ([at("SIGTERM", "sync_slow"), last] if environment else [])
    assert codes == [-signal.SIGTERM] * 2


def test_a_second_interrupt(tmp_path: Path) -> None:
    """Uvicorn cancels all at a second SIGINT: the first was reported, and the spans say what was cut short."""
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve("uvicorn-h11-asyncio", folder, **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            server.process.send_signal(signal.SIGINT)
            wait_for(lambda: is_closed(server))
            if environment:
                wait_for(lambda: reports(server) == [at("SIGINT")])
            server.process.send_signal(signal.SIGINT)
            codes.append(server.process.wait(25))
            assert server.told("one") == [("slow", "asyncio.exceptions.CancelledError"), ("behind", "skipped")]
            if environment:
                first, last = reports(server)
                assert first == at("SIGINT")
                # Nothing says whether the application or its tasks are cancelled first.
                assert last in (at("the end of the application"), ended("SIGINT"))
    assert codes == [0, 0]


def test_a_report_before_a_kill(tmp_path: Path) -> None:
    """What gunicorn kills when its time is over was reported when that began; the spans are lost."""
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve("gunicorn", folder, "--graceful-timeout", "5", **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            codes.append(server.terminate())
            assert server.ran("one") == ["slow starts"]
            assert server.told("one") == []
            assert reports(server) == ([at("SIGTERM")] if environment else [])
    assert codes == [0, 0]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_a_worker_ignores(by: signal.Signals, tmp_path: Path) -> None:
    """At SIGINT and SIGQUIT gunicorn sends its worker SIGQUIT, which that ignores, and later kills it: no line."""
    codes: list[int] = []
    for folder, environment in plain_and_reported(tmp_path):
        with serve("gunicorn", folder, "--graceful-timeout", "2", **environment) as server:
            server.get("/traced/slow?order=one")
            wait_for(lambda: server.ran("one"))
            server.process.send_signal(by)
            codes.append(server.process.wait(25))
            assert server.told("one") == []
            assert reports(server) == []
            assert not server.records(lifespan="stopped")
    assert codes == [0, 0]
