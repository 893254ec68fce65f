"""One run of a task: from the start of its function to its end.

Rule 1: A run begins in the thread that calls the function, right before the call. Until then the task waits. A run in
another process is reported afterwards, with what is known of its start.

Rule 2: It ends where the function ends, even if nobody waits for that any longer.

Rule 3: It ends outside of the `except` that caught what the function raised. What an exporter, a hook or a log handler
raises, records or logs inside of it would carry the function's exception along, as its `__context__`.

Rule 4: The exception is then raised again as it is, and popped, not kept: its traceback refers to the frame, and both
would live on until the next garbage collection. An error of the telemetry is logged, and goes no further.
"""

from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token, copy_context
from time import perf_counter, time_ns
from types import FunctionType
from typing import Any, NoReturn

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, StatusCode
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from traced_tasks._foreign import in_transaction, loop_variables
from traced_tasks._handover import Handover
from traced_tasks._lost import lose, reporter
from traced_tasks._names import error_type
from traced_tasks._telemetry import Task, call_hook, guarded, log_failure, record_exception, start_span, warn

# Threads that are not those of the `def` routes: with a broker that does not answer, a send may never return.
_SENDING = 10
_sending: RunVar[CapacityLimiter] = RunVar("traced_tasks")

SetVariables = Sequence[tuple[ContextVar[Any], Token[Any]]]

Run = tuple[Task, float, Span, Context, Token[Context] | None, SetVariables, bool, Handover | None]
"""The task, when it started, its span, its context, the token to detach that, the variables that were set, whether it
is measured, and what is called instead of its function."""


async def run(task: Task) -> None:
    """Run a task: an `async def` one here, a `def` one in a worker thread."""
    task.instruments.waiting.pop(id(task), None)
    if not task.is_async:
        await _wait_for_thread(task)
        return
    begun = start(task)
    try:
        if task.tracing.task_hook is not None:
            call_hook(task, begun[2])
        func = task.func if type(BackgroundTask.__call__) is FunctionType else in_transaction(task.func)
        result = await (begun[7] or func)(*task.args, **task.kwargs)
    except BaseException as error:
        raised = [error]
    else:
        end(begun, result)
        return
    end(begun, None, raised)
    raise_again(raised)


async def _wait_for_thread(task: Task) -> None:
    waiting = task.instruments.waiting
    ticket = object()  # not the task's own: it may be running at the same time, for another response
    waiting[ticket] = id(task)
    try:
        if task.handover is None:
            await run_in_threadpool(_run_in_thread, task, ticket)
        else:
            limiter = _sending.get(None) or CapacityLimiter(_SENDING)
            _sending.set(limiter)
            await to_thread.run_sync(_run_in_thread, task, ticket, limiter=limiter)
        return
    except BaseException as error:
        raised = [error]
    if waiting.pop(ticket, None):
        lose(task, "skipped", f"it was cut short by {error_type(raised[0])} before its function was called")
    raise_again(raised)


def _run_in_thread(task: Task, ticket: object) -> None:
    if not task.instruments.waiting.pop(ticket, None):
        return  # it is cancelled already, and reported
    begun = start(task)
    try:
        if task.tracing.task_hook is not None:
            call_hook(task, begun[2])
        func = task.func if type(BackgroundTask.__call__) is FunctionType else in_transaction(task.func)
        result = (begun[7] or func)(*task.args, **task.kwargs)
    except BaseException as error:
        raised = [error]
    else:
        end(begun, result)
        return
    end(begun, None, raised)
    raise_again(raised)


def start(task: Task, ago: float = 0) -> Run:
    """Start the run of a task, right before its function is called, or as if it had been called `ago` seconds ago."""
    instruments = task.instruments
    handover = None if task.handover is None else Handover(task, *task.handover)
    started_at = task.running_since = perf_counter() - ago
    waited: float | None = None
    span: Span = INVALID_SPAN
    context = task.context
    try:
        if task.queued_at is not None:
            waited = started_at - task.queued_at
        if handover is not None:
            span, context = handover.start_span()
        else:
            start_time = time_ns() - int(ago * 1e9) if ago else None
            span, context = start_span(task, task.tracing, "background_task.queue.duration", waited, start_time)
    except Exception as failure:
        log_failure("The background task %s runs without a span, which could not be started.", instruments, failure)
    variables: SetVariables = ()
    if task.captured_variables is not None:
        own = [variable for variable in task.captured_variables if variable not in loop_variables]
        variables = [(variable, variable.set(task.captured_variables[variable])) for variable in own]
    token = otel_context.attach(context)
    task.running_span = span
    measured = instruments.measured and handover is None  # what is handed over is measured where it runs
    if measured:
        _measure_start(task, waited)
    return task, started_at, span, context, token, variables, measured, handover


def start_measured(task: Task, ago: float = 0) -> Run:
    """Start the run of a task whose span somebody else makes."""
    started_at = task.running_since = perf_counter() - ago
    _measure_start(task, None if task.queued_at is None else started_at - task.queued_at)
    return task, started_at, INVALID_SPAN, task.context, None, (), task.instruments.measured, None


def _measure_start(task: Task, waited: float | None) -> None:
    try:
        task.instruments.start(waited)
    except Exception as failure:
        log_failure("The start of the background task %s could not be measured.", task.instruments, failure)


def end(run: Run, result: Any, raised: Sequence[BaseException] = (), ended: tuple[float, int] | None = None) -> None:
    """End the run of a task, with what its function returned or raised, now or after so many seconds, at that time."""
    task, started_at, span, _, token, variables, measured, handover = run
    instruments = task.instruments
    error: str | None = None
    seconds, ended_at = ended or (0.0, None)
    if raised or (result is not None and handover is None):
        # Now, for what tells of it takes its time: a log handler, or the thread that has more to report.
        seconds, ended_at = ended or (perf_counter() - started_at, time_ns())
        if raised and token is not None and (type(raised[0]) is GeneratorExit or reporter.is_collecting()):
            end_elsewhere(run, raised, reporter, (seconds, ended_at))
            return
        error = error_type(raised[0]) if raised else never_ran(result)
    elif measured:
        seconds = perf_counter() - started_at
    try:
        if measured:
            try:
                instruments.end(seconds, error)
            except Exception as failure:
                log_failure("The end of the background task %s could not be measured.", instruments, failure)
        if handover is not None and handover.gives_way:
            with guarded("The hand-over of the background task %s could not be traced.", task):
                span = handover.left_open(ended_at - int(seconds * 1e9) if raised and ended_at else None)
        if error is not None:
            _tell(task, span, error, raised, seconds, handover)
        try:
            span.end(ended_at)
        except Exception as failure:
            log_failure("The span of the background task %s could not be ended.", instruments, failure)
    finally:
        task.running_since = task.running_span = None
        # Behind all that is told: an exception's log record and a measurement's exemplar refer to the current span.
        _leave(token, variables, raised)


def end_elsewhere(run: Run, raised: Sequence[BaseException], call: Any, ended: tuple[float, int] | None = None) -> None:
    """End the run of a task that failed, in a context of its own: a garbage collection may have closed a coroutine."""
    task, started_at, span, context, token, variables, measured, handover = run
    ended = ended or (perf_counter() - started_at, time_ns())
    _leave(token, variables, raised)
    elsewhere = copy_context()
    elsewhere.run(otel_context.attach, context)
    run = task, started_at, span, context, None, (), measured, handover
    call(elsewhere.run, end, run, None, tuple(raised), ended)


def _leave(token: Token[Context] | None, variables: SetVariables, raised: Sequence[BaseException]) -> None:
    try:
        # Not so if another package, such as ddtrace, keeps the current context: its token may be of any type.
        if raised and isinstance(token, Token):
            token.var.reset(token)
        elif token is not None:
            otel_context.detach(token)
        for variable, was in variables:
            variable.reset(was)
    except ValueError:  # a coroutine may be closed in another context than it ran in
        pass


def raise_again(raised: list[BaseException]) -> NoReturn:
    """Raise what is in the list, and leave it as it was."""
    error = raised.pop()
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context  # which is otherwise what is being handled further up
        del error, context


def _tell(
    task: Task, span: Span, error: str, raised: Sequence[BaseException], seconds: float, handover: Handover | None
) -> None:
    name = task.instruments.name
    if raised:
        with guarded("The failure of the background task %s could not be recorded.", task):
            record_exception(raised[0], task, span)
        if handover is None:
            warn(task, error, "The background task %s failed with %s after %.3f s.", name, error, seconds)
        if handover is None or handover.runs_here:
            return
        lost, message = "unconfirmed", _UNCONFIRMED
        args: tuple[object, ...] = (name, handover.system, error, seconds, handover.message_id)
    else:
        lost, message, args = error, _NEVER_RAN, (name, REASONS[error])
    with guarded("The loss of the background task %s could not be recorded.", task):
        span.set_attribute("error.type", lost)
        task.instruments.lose(lost)
        if not raised:
            span.set_status(StatusCode.ERROR, REASONS[error])
    warn(task, lost, message, *args)


_NEVER_RAN = "The body of the background task %s never ran: %s."
_UNCONFIRMED = (
    "The background task %s is unconfirmed: to hand it over to %s failed with %s after %.3f s. "
    "Its message %s may have arrived, or not."
)
REASONS = {
    "never_awaited": "its function returned a coroutine or an async generator, which nobody awaits. Give add_task an "
    "`async def` function that does, or the one that is called there",
    "never_iterated": "its function returned a generator, which nobody iterates. Give add_task a function that does",
}
_BODIES = (
    (Coroutine, "cr", "never_awaited"),
    (AsyncGenerator, "ag", "never_awaited"),
    (Generator, "gi", "never_iterated"),
)


def never_ran(result: Any) -> str | None:
    """Return the `error.type` if what a function returned is a body that has not begun to run."""
    with suppress(Exception):  # somebody's metaclass
        for kind, prefix, error in _BODIES:
            if issubclass(type(result), kind):
                states = ("running", "suspended")
                if any(getattr(result, f"{prefix}_{state}", False) for state in states):
                    return None
                return None if getattr(result, f"{prefix}_frame", result) is None else error
    return None
