"""`python -m traced_tasks`: what it takes, what it writes, and how it stops."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

import traced_tasks.__main__
from tests.demo.conftest import Collector
from traced_tasks.__main__ import main
from traced_tasks.demo import story

COMMAND = [sys.executable, "-W", "error", "-m", "traced_tasks"]
# Ctrl-C can come between the opening of a socket and the line that sees to its closing.
INTERRUPTIBLE = [sys.executable, "-m", "traced_tasks"]


def raising(exc: BaseException) -> Callable[..., Any]:
    def raises(*args: Any, **kwargs: Any) -> Any:
        raise exc

    return raises


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stories are told, and --svg writes what was shown, in a wide and in a narrow picture."""
    file = tmp_path / "story.svg"
    assert main(["--svg", str(file)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("response at the client") == 7
    assert "linked to POST /checkout" in told.out
    assert "all 4 tasks ran" in told.out
    assert "ran in the worker, after" in told.out

    assert sorted(path.name for path in tmp_path.iterdir()) == ["story.narrow.svg", "story.svg"]
    for path in tmp_path.iterdir():
        picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        text = " ".join(element.text or "" for element in picture.iter())
        for name in (
            "python -m traced_tasks",
            "POST /checkout",
            "background_task notify",
            "GET",
            "linked to POST /checkout",
            "never ran: skipped",
            "in the worker",
        ):
            assert name in text


def test_one_story(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --story there is this one alone, and one that does not exist is refused."""
    asked: list[str | None] = []

    def tell(_: Any, only: str | None) -> list[Any]:
        asked.append(only)
        return []

    monkeypatch.setattr(story, "tell", tell)
    for name in story.STORIES:
        assert main(["--story", name]) == 0
    assert main([]) == 0
    assert asked == ["checkout", "lost", "workers", None]
    with pytest.raises(SystemExit) as stop:
        main(["--story", "found"])
    assert stop.value.code == 2
    assert "invalid choice: 'found'" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_export(collector: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With an endpoint in the environment, a collector there receives the very spans that are drawn."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    assert main([]) == 0
    (resource,) = [resource for request in collector.received for resource in request.resource_spans]
    assert ("service.name", "shop") in [(item.key, item.value.string_value) for item in resource.resource.attributes]
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert set(spans) == {"POST /checkout", "background_task notify", "GET"}
    assert spans["background_task notify"].parent_span_id == spans["POST /checkout"].span_id
    out = capsys.readouterr().out
    assert f"trace {spans['GET'].trace_id.hex()[:8]}" in out
    assert f"The 3 spans were exported to {collector.url}, service shop.\n" in out


@pytest.mark.usefixtures("short")
def test_export_refused(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A collector that refuses the spans does no harm, and the one line about it says why."""
    collector.status = 400
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/elsewhere")
    assert main([]) == 0
    told = capsys.readouterr()
    assert re.search(r"^The spans were not exported to \S+/elsewhere: .*400.*$", told.out, re.MULTILINE)
    assert "The difference in POST /checkout" in told.out
    assert told.err == ""


@pytest.mark.usefixtures("short")
def test_export_misconfigured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment that the exporter cannot make sense of does no harm either."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "nonsense")
    assert main([]) == 0
    assert re.search(
        r"^The spans were not exported to http://127.0.0.1:9: .*nonsense.*$", capsys.readouterr().out, re.M
    )


def test_no_terminal() -> None:
    """In a pipe it writes plain text, in ASCII if need be, and one line if nobody answers at the endpoint."""
    port = free_port()
    environment = os.environ | {
        "PYTHONIOENCODING": "ascii",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
    }
    command = [*COMMAND, "--story", "lost"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="ascii", timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "x 2 tasks never ran: update_crm, write_audit" in done.stdout
    assert len(re.findall(f"^The spans were not exported to http://127.0.0.1:{port}: .+$", done.stdout, re.M)) == 1


def test_interrupt() -> None:
    """Ctrl-C ends it with one line."""
    command = [*INTERRUPTIBLE, "--story", "lost"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err == "python -m traced_tasks: interrupted\n"
    assert process.returncode == 130


def test_closed_output() -> None:
    """A reader that stops listening ends it with one line."""
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=60)
    assert err == "python -m traced_tasks: the output was closed before the story ended\n"
    assert process.returncode == 1


@pytest.mark.parametrize(
    "package",
    [
        "httpx",
        "opentelemetry.exporter",
        "opentelemetry.instrumentation.httpx",
        "opentelemetry.sdk",
        "rich",
        "uvicorn",
    ],
)
def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a package of the extra, one line says how to get it."""
    monkeypatch.setattr(traced_tasks, "demo", traced_tasks.demo)  # which the import below replaces
    for name in [name for name in sys.modules if name.startswith("traced_tasks.demo")]:
        monkeypatch.delitem(sys.modules, name)
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["traced_tasks"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(traced_tasks.__main__.__file__, run_name="__main__")
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(rf'.*{package}.*: pip install "traced-tasks\[demo\]"\n', told.err)


def test_old_fastapi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A FastAPI without telemetry of its own is a missing package, too."""
    monkeypatch.setitem(sys.modules, "fastapi.telemetry", None)
    assert main([]) == 2
    assert capsys.readouterr().err == (
        'python -m traced_tasks: this needs the extra "demo" (FastAPI 0.142 or newer): '
        'pip install "traced-tasks[demo]"\n'
    )


def test_unwritable_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be written, of the two, is refused before the story begins."""
    monkeypatch.setattr(story, "tell", raising(AssertionError("told")))
    (tmp_path / "story.narrow.svg").mkdir()
    assert main(["--svg", str(tmp_path / "story.svg")]) == 2
    assert main(["--svg", str(tmp_path)]) == 2
    assert main(["--svg", str(tmp_path / "nowhere" / "story.svg")]) == 2
    assert capsys.readouterr().err == (
        f"python -m traced_tasks: cannot write {tmp_path / 'story.narrow.svg'}: Is a directory\n"
        f"python -m traced_tasks: cannot write {tmp_path}: Is a directory\n"
        f"python -m traced_tasks: cannot write {tmp_path / 'nowhere' / 'story.svg'}: No such file or directory\n"
    )


def test_svg_of_no_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A story that is not told to its end leaves no file behind, and one that was there as it was."""
    monkeypatch.setattr(story, "tell", raising(KeyboardInterrupt()))
    old, new = tmp_path / "old.svg", tmp_path / "new.svg"
    old.write_text("old")
    assert main(["--svg", str(old)]) == 130
    assert main(["--svg", str(new)]) == 130
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_closed_output_in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What rich makes of a closed output, an exit, becomes the line and the exit code."""
    monkeypatch.setattr(story, "tell", raising(SystemExit(1)))
    assert main([]) == 1
    assert "the output was closed" in capsys.readouterr().err


def test_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that is no file of the operating system will do."""
    monkeypatch.setattr(story, "tell", lambda *_: [])
    monkeypatch.setattr(sys, "stdout", object())
    assert main([]) == 0


def test_no_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no port can be opened, one line says so."""
    monkeypatch.setattr(socket.socket, "bind", raising(OSError(98, "Address already in use")))
    assert main([]) == 2
    assert capsys.readouterr().err == (
        "python -m traced_tasks: no port on 127.0.0.1 could be opened: [Errno 98] Address already in use\n"
    )


def test_no_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the app cannot be reached, one line says so."""
    monkeypatch.setattr(httpx.Client, "request", raising(httpx.ConnectError("refused")))
    assert main([]) == 2
    assert re.fullmatch(
        r"python -m traced_tasks: the app at http://127.0.0.1:\d+ does not answer: refused\n", capsys.readouterr().err
    )


@pytest.mark.usefixtures("short")
def test_no_spans(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the SDK is switched off, there is nothing to draw, and one line says why."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert main([]) == 2
    assert capsys.readouterr().err == ("python -m traced_tasks: no span was recorded; is OTEL_SDK_DISABLED set?\n")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command explains itself."""
    monkeypatch.setattr(sys, "argv", ["traced_tasks", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(traced_tasks.__main__.__file__, run_name="__main__")
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m traced_tasks [-h] [--svg FILE] [--story {checkout,lost,workers}]" in out
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in out
