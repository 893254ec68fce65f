"""The programs of the page on deployment, on real servers that are stopped while tasks run and wait."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from tests.backends.receiver import Received, attributes, receive_http
from tests.programs import http
from tests.servers.serving import COMMANDS, is_listening, wait_for

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "deployment"


class Program:
    """A program of the page that is running, and what it has logged."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def log(self) -> str:
        return self._log.read_text()

    def lines(self) -> list[str]:
        """What traced_tasks has logged, without its numbers of seconds."""
        return untimed(self.log())

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(by)
        return self.process.wait(60)


def untimed(log: str) -> list[str]:
    lines = re.findall(r"^(?:WARNING|INFO):traced_tasks:.*", log, re.MULTILINE)
    return [re.sub(r"\d+\.\d+ s\b", "n s", line) for line in lines]


@contextmanager
def serve(server: str, app: str, folder: Path, *options: str, **environment: str) -> Iterator[Program]:
    """Run a program of the page by one of the servers until the end of the block."""
    port = free_port()
    command = [part.format(port=port) for part in COMMANDS[server]]
    with run([*command, *options, app], port, folder, **environment) as program:
        yield program


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def run(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[Program]:
    """Run a command of the page until the end of the block."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-B", "-m", *command],
            cwd=EXAMPLES,
            env={**os.environ, "PYTHONPATH": str(folder), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    program = Program(process, f"http://127.0.0.1:{port}", folder / "log")

    def is_up() -> bool:
        assert process.poll() is None, program.log()
        # All workers, for gunicorn's signal does not reach one that is being forked.
        started = program.log().count("Application startup complete")
        has_started = started >= (2 if "--preload" in command else 1) or "Running on" in program.log()
        return has_started and is_listening(port)  # uvicorn says the first before it listens

    try:
        wait_for(is_up)
        yield program
    finally:
        with suppress(ProcessLookupError):  # it has ended, and so have its workers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture
def received() -> Iterator[Received]:
    with receive_http() as received:
        yield received


def ended(received: Received) -> dict[str, object]:
    """The tasks whose spans have arrived, and how they failed."""
    spans = {span.name.removeprefix("background_task "): attributes(span.attributes) for span in received.task_spans}
    return {name: known.get("error.type") for name, known in spans.items()}


RECIPES = {  # Uvicorn's is the command of a container
    "gunicorn": ("--graceful-timeout", "60"),
    "gunicorn-preload": ("--graceful-timeout", "60"),
    "hypercorn-asyncio": ("--workers", "0", "--graceful-timeout", "60"),
}


@pytest.mark.parametrize("server", RECIPES)
def test_reported(server: str, received: Received, tmp_path: Path) -> None:
    """The program says at a SIGTERM what runs and waits, then that it has ended, and exports the spans of all of it."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}
    with serve(server, "reported:app", tmp_path, *RECIPES[server], **endpoint) as program:
        assert http.post(f"{program.url}/exports").is_success
        program.stop()

        assert program.lines() == untimed((EXAMPLES / "reported.txt").read_text())
        assert ended(received) == {"write_export": None, "send_link": None}


CUT_SHORT = {"write_export": "asyncio.exceptions.CancelledError", "send_link": "skipped"}


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ("uvicorn-h11-asyncio", ("--timeout-graceful-shutdown", "1")),
        ("hypercorn-asyncio", ("--workers", "0", "--graceful-timeout", "1")),
    ],
)
def test_a_time_of_grace_that_is_over(
    server: str, options: tuple[str, ...], received: Received, tmp_path: Path
) -> None:
    """A server with a time of grace cancels what still runs, and the spans that say so are exported before it ends."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}
    with serve(server, "reported:app", tmp_path, *options, **endpoint) as program:
        assert http.post(f"{program.url}/exports?seconds=600").is_success
        program.stop()

        assert ended(received) == CUT_SHORT


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stopping(by: signal.Signals, received: Received, tmp_path: Path) -> None:
    """With the worker class, gunicorn's tasks are cancelled and exported before it kills, whatever signal it gets."""
    (tmp_path / "quick.py").write_text(
        "from stopping import StoppingWorker\n"
        "class Worker(StoppingWorker):\n"
        "    CONFIG_KWARGS = {**StoppingWorker.CONFIG_KWARGS, 'timeout_graceful_shutdown': 1}\n"
    )
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint}
    options = "--worker-class", "quick.Worker", "--graceful-timeout", "60"
    with serve("gunicorn", "reported:app", tmp_path, *options, **endpoint) as program:
        assert http.post(f"{program.url}/exports?seconds=600").is_success
        assert program.stop(by) == 0

        assert program.lines() == untimed((EXAMPLES / "stopping.txt").read_text())
        assert ended(received) == CUT_SHORT


def dockerfile() -> list[str]:
    """The command of the Dockerfile."""
    lines = (EXAMPLES / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^CMD (\[.*\])$", lines, re.MULTILINE)
    return cast("list[str]", json.loads(command))


def pod(server: str) -> Any:
    """The template of a pod, and its only container."""
    spec = yaml.safe_load((EXAMPLES / f"pod_{server}.yaml").read_text())["spec"]
    (container,) = spec["containers"]
    return spec, container


def pod_command(server: str) -> list[str]:
    _, container = pod(server)
    return [*container["command"], *container["args"]]


# What uvicorn takes where it is installed alone, as by the Dockerfile.
ALONE = {"UVICORN_HTTP": "h11", "UVICORN_LOOP": "asyncio"}


@pytest.mark.parametrize(
    ("command", "chosen"), [(dockerfile(), ALONE), (pod_command("uvicorn"), {})], ids=["Dockerfile", "pod"]
)
def test_the_command_of_a_container(
    command: list[str], chosen: dict[str, str], received: Received, tmp_path: Path
) -> None:
    """The command of the Dockerfile and of the pod serves, and at a SIGTERM reports, waits and exports."""
    _, container = pod("uvicorn")
    port = free_port()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint, "UVICORN_PORT": str(port), **chosen}
    with run(command, port, tmp_path, **settings) as program:
        assert http.get(program.url + container["readinessProbe"]["httpGet"]["path"]).is_success
        assert http.post(f"{program.url}/exports").is_success
        assert program.stop() == -signal.SIGTERM

        assert program.lines() == untimed((EXAMPLES / "reported.txt").read_text())
        assert ended(received) == {"write_export": None, "send_link": None}


def option(name: str, command: list[str]) -> int:
    (value,) = (part.partition("=")[2] for part in command if part.startswith(f"{name}="))
    return int(value)


def test_the_times_of_a_container() -> None:
    """Each time of grace on the page is longer than the one inside of it."""
    (tasks,) = map(int, re.findall(r'"timeout_graceful_shutdown": (\d+)', (EXAMPLES / "stopping.py").read_text()))
    assert tasks == option("--timeout-graceful-shutdown", dockerfile())
    assert tasks == option("--timeout-graceful-shutdown", pod_command("uvicorn"))
    gunicorn = pod_command("gunicorn")
    served = option("--graceful-timeout", gunicorn)
    assert tasks + 10 <= served == option("--timeout", gunicorn)

    for server in ("uvicorn", "gunicorn"):
        spec, container = pod(server)
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pause + served + 5 <= spec["terminationGracePeriodSeconds"]
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["shop"]["stop_grace_period"]
    assert served + 10 <= int(compose.removesuffix("s"))
    page = (EXAMPLES.parents[1] / "deployment.md").read_text()
    assert f"docker run --stop-timeout {compose.removesuffix('s')} " in page


def test_pods_differ_in_their_command() -> None:
    """Nothing but the command is different in the pods of the two servers."""
    (one, first), (other, second) = pod("uvicorn"), pod("gunicorn")
    for container in (first, second):
        del container["command"], container["args"]

    assert one == other


def test_admin(tmp_path: Path) -> None:
    """The admin route lists what runs and waits, and the health check counts what waits."""
    with serve("uvicorn-h11-asyncio", "admin:app", tmp_path) as program:
        assert http.get(f"{program.url}/health").json() == {"waiting": 0, "late": 0}
        assert http.post(f"{program.url}/exports").is_success
        wait_for(lambda: "running" in http.get(f"{program.url}/admin/tasks").text)

        running, waiting = http.get(f"{program.url}/admin/tasks").json()
        assert (running["function"], running["state"]) == ("admin.write_export", "running")
        assert (waiting["function"], waiting["state"]) == ("admin.send_link", "waiting")
        assert http.get(f"{program.url}/health").json() == {"waiting": 1, "late": 0}
