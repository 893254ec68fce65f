"""How to tell something from a finalizer: outside the garbage collection, and in the process it belongs to."""

import gc
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

_Calls = SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]]


class Finalizers:
    """Calls on behalf of `__del__` and of coroutines that are thrown away.

    Python may collect garbage at any allocation, so also while the interrupted code holds a lock that the call needs:
    of an exporter, an instrument, a log handler, or the application. Then the call is made on a thread of its own.
    """

    def __init__(self) -> None:
        self.generation = 1
        """One more than in the process that this one was forked from."""
        self._collecting: int | None = None
        self._worker: threading.Thread | None = None
        self._calls: _Calls = SimpleQueue()
        gc.callbacks.append(self._watch)
        after_fork(self._forked)

    def __call__(self, call: Callable[..., None], *args: Any) -> None:
        """Call now, or on a thread if this one is collecting garbage, or not at all if Python is finalizing."""
        if sys.is_finalizing():
            return
        if self._collecting != threading.get_ident():
            call(*args)
            return
        self._calls.put((call, args))  # reentrant, as that of no other queue
        if self._worker is None:
            with suppress(RuntimeError):  # no thread to be had, for now: the next call may get one
                worker = threading.Thread(target=self._work, name="traced_tasks", daemon=True)
                worker.start()
                self._worker = worker

    def _work(self) -> None:
        calls = self._calls
        while True:
            call, args = calls.get()
            with suppress(BaseException):  # there is no other thread to report what comes after
                call(*args)
            del call, args

    def _watch(self, phase: str, info: dict[str, int]) -> None:  # noqa: ARG002
        self._collecting = threading.get_ident() if phase == "start" else None

    def _forked(self) -> None:
        self.generation += 1
        self._worker = None
        self._calls = SimpleQueue()


def after_fork(call: Callable[[], None]) -> None:
    """Call in each process that is forked off, where there is such a thing."""
    register: Any = getattr(os, "register_at_fork", dict)
    register(after_in_child=call)


finalizers = Finalizers()
