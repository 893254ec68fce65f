"""Background tasks in the workers of [Celery](https://docs.celeryq.dev)."""

import os
import sys
from signal import SIGKILL
from threading import Thread
from time import time
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from celery import Celery, signals  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
from celery.exceptions import (  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

from traced_tasks import _worker
from traced_tasks._dependency import TaskTracing
from traced_tasks._engines import CELERY, engine_of_broker
from traced_tasks._options import TaskOptions, checked
from traced_tasks._run import Run, end, end_elsewhere

__all__ = ["trace_tasks"]


def trace_tasks(app: Celery, *, tracing: TaskTracing | None = None) -> None:
    """Give each task that a worker of an app runs a span of its own.

    Call it where the app is made, in the application's process too:

    ```python
    app = Celery("shop", broker="redis://localhost")
    trace_tasks(app)
    ```

    If opentelemetry-instrumentation-celery is active as well, it makes the span. A second call for an app replaces the
    options.

    Args:
        app: The app. Tasks of other apps are left alone.
        tracing: The worker's own options: `attributes`, `task_hook`, `record_exception`, `span_kind`, the providers. On
            the same key, what came with the message wins. Default: `TaskTracing()`.

    Raises:
        TypeError: `app` is not a Celery app, or `tracing` not a `TaskTracing`.
    """
    if engine_of_broker(app) is not CELERY:  # nor Celery's `current_app`, which may be another one each time
        raise TypeError(f"trace_tasks takes a Celery app, not an object of type {type(app).__qualname__}")
    _Tracing(app, checked(tracing)).connect()


class _Tracing:
    def __init__(self, app: Any, tracing: TaskOptions) -> None:
        self._app, self._tracing = app, tracing
        self._main_process = os.getpid()
        self._is_child = False
        self._runs: WeakKeyDictionary[Any, Run] = WeakKeyDictionary()
        # On a time limit, the process that gave a task out no longer has its request.
        self._requests: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def connect(self) -> None:
        uid = f"traced_tasks {id(self._app)}"
        for name, receiver in {
            "worker_init": self._begin,
            "worker_process_init": self._begin_child,
            "task_prerun": self._start,
            "task_postrun": self._end,
            "task_received": self._keep,
            "task_failure": self._fail,
            "task_revoked": self._revoke,
            "worker_process_shutdown": self._flush,
            "worker_shutdown": self._flush,
        }.items():
            signal: Any = getattr(signals, name)
            signal.disconnect(dispatch_uid=uid)
            signal.connect(receiver, weak=False, dispatch_uid=uid)

    def _begin(self, **_: Any) -> None:
        self._main_process = os.getpid()

    def _begin_child(self, **_: Any) -> None:
        self._is_child = os.getpid() != self._main_process  # of the pools without a child as well

    def _start(self, task: Any, args: Any, kwargs: Any, **_: Any) -> None:
        if task.app is self._app:
            request = task.request
            run = self._receive(task, args, kwargs, request.headers, request).start()
            if run is not None:
                self._runs[request] = run

    def _receive(self, task: Any, args: Any, kwargs: Any, headers: Any, request: Any) -> _worker.Received:
        delivery: dict[str, Any] = request.delivery_info or {}
        queue = delivery.get("routing_key")
        arguments: tuple[Any, ...] = task, args, kwargs, headers or {}, request.id, queue, self._tracing
        return _worker.Received(CELERY, self._app, request, *arguments)

    def _end(self, task: Any, retval: Any, state: str | None, **_: Any) -> None:
        run = self._runs.pop(task.request, None)
        if run is None:
            return
        # Celery says nothing of what it does not catch.
        raised = sys.exc_info()[1] if state is None else retval if state != "SUCCESS" else None
        if raised is None:
            end(run, retval)
        elif self._is_child and isinstance(raised, SystemExit | KeyboardInterrupt) and not task.request.is_eager:
            del run[0].instruments.running[-1:]  # the child exits, and the process that it is one of reports that
        elif state is None:
            # In a thread, for what is raised in an `except` has a `__context__` (rule 3 of `_run`).
            end_elsewhere(run, CELERY.failed(raised), _in_thread)
        else:
            end(run, None, CELERY.failed(raised))

    def _keep(self, request: Any, **_: Any) -> None:
        if request.task.app is self._app:
            self._requests[request.id] = request

    def _fail(self, task_id: str, exception: BaseException, **_: Any) -> None:
        # With a traceback it was raised in this process, and not by the task, in a child. Of a child that exits, Celery
        # before 5.7 says only how.
        is_lost = isinstance(exception, WorkerLostError | TimeLimitExceeded) and exception.__traceback__ is not None
        if is_lost or isinstance(exception, SystemExit | KeyboardInterrupt):
            self._report(task_id, exception)

    def _revoke(self, request: Any, terminated: bool, signum: Any, **_: Any) -> None:
        if terminated:
            self._report(request.id, Terminated(signum))

    def _report(self, task_id: str, failure: BaseException) -> None:
        # The process that ran the task is gone. This one gave it out.
        request = self._requests.pop(task_id, None)
        if request is None or request.worker_pid == os.getpid():
            return
        received = self._receive(request.task, request.args, request.kwargs, request.request_dict, request)
        # A child that exits still ends the span of its instrumentation. One that was killed does not.
        is_lost = isinstance(failure, WorkerLostError) and "signal" in str(failure)
        if is_lost or (isinstance(failure, Terminated) and failure.args == (SIGKILL,)):
            received.gives_way = False
        run = received.start(time() - (request.time_start or time()))
        if run is not None:
            end(run, None, [failure])

    def _flush(self, **_: Any) -> None:
        _worker.flush(self._tracing)


def _in_thread(call: Any, *args: Any) -> None:
    thread = Thread(target=call, args=args)
    thread.start()
    thread.join()
