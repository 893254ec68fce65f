"""A task, from `add_task` until nothing is left of it, under each configuration of OpenTelemetry.

`python -m tests.benchmarks.tasks CONFIGURATION ROUNDS` measures one of them in its process.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from time import perf_counter
from typing import Any, NamedTuple

import starlette.background
from fastapi import BackgroundTasks, FastAPI
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from tests.benchmarks.bare import BareTasks, MeasuredTasks, notify, notify_sync
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from tests.benchmarks.requests import request
from traced_tasks import TracedBackgroundTasks

PLAIN, BARE, FASTAPI, CONTRIB, DDTRACE = (
    "BackgroundTasks",
    "bare span",
    "fastapi.background_task",
    "FastAPIInstrumentor",
    "ddtrace",
)
TASKS = 40  # of a queue
UNSAMPLED = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")

Queue = Callable[[], starlette.background.BackgroundTasks]


class Configuration(NamedTuple):
    """A row of the table: what is configured, and what has to be reached then."""

    title: str
    figures: list[Figure]
    tracing: bool = True
    metrics: bool = False
    sampled: bool = True
    func: Callable[..., Any] = notify
    ddtrace: bool = False
    cores: int | None = None
    """On two, what the span of a thread costs depends on how far the caches of the two are from each other."""


CONFIGURATIONS = {
    "tracing": Configuration(
        "a task, SDK tracing",
        [Figure(BARE, "at most", 1.03), Figure(FASTAPI, "below", 1.0), Figure(CONTRIB, "below", 1.0)],
    ),
    "off": Configuration(
        "a task, no SDK",
        [Figure(BARE, "at most", 0.85), Figure(CONTRIB, "below", 1.0)],
        tracing=False,
    ),
    "metrics": Configuration(
        "a task, SDK tracing and metrics",
        [Figure(BARE, "at most", 1.07)],
        metrics=True,
    ),
    "unsampled": Configuration(
        "a task of an unsampled request",
        [Figure(BARE, "at most", 1.05), Figure(FASTAPI, "below", 1.0), Figure(CONTRIB, "below", 1.0)],
        sampled=False,
    ),
    "threads": Configuration(
        "a sync task, SDK tracing, on one core",
        [Figure(BARE, "at most", 1.02), Figure(FASTAPI, "below", 1.0), Figure(CONTRIB, "below", 1.0)],
        func=notify_sync,
        cores=1,
    ),
    "ddtrace": Configuration("a task, beside ddtrace", [], ddtrace=True),
}


def configure(configuration: Configuration) -> None:
    """Set the global providers. What they record is dropped at no cost."""
    if configuration.tracing:
        tracer_provider = TracerProvider(shutdown_on_exit=False)
        tracer_provider.add_span_processor(SpanProcessor())
        trace.set_tracer_provider(tracer_provider)
    if configuration.metrics:
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))


async def context_of(app: FastAPI, sampled: bool) -> Context:
    """Return the OpenTelemetry context of a request to an app."""
    contexts = []

    @app.post("/notifications")
    async def handler() -> None:
        contexts.append(otel_context.get_current())

    await request(app, *[] if sampled else [UNSAMPLED])
    return contexts[0]


class ContribTask(starlette.background.BackgroundTask):
    """A task with the method that `FastAPIInstrumentor` gives to Starlette's, of which every peer would have it."""


class ContribStarletteTasks(starlette.background.BackgroundTasks):
    """Starlette's queue, of such tasks."""

    def add_task(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Queue a task as Starlette does."""
        task = ContribTask(func, *args, **kwargs)
        self.tasks.append(task)


class ContribTasks(BackgroundTasks, ContribStarletteTasks):
    """FastAPI's queue, whose `add_task` calls the one above."""


def patch_ddtrace() -> None:
    """Let ddtrace trace FastAPI's queue, and send nothing anywhere."""
    for name in ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "DD_REMOTE_CONFIGURATION_ENABLED"):
        os.environ[name] = "false"
    ddtrace: Any = import_module("ddtrace")
    tracing: Any = import_module("ddtrace.trace")

    class Drop(tracing.TraceFilter):  # type: ignore[misc]
        def process_trace(self, trace: Any) -> None:
            return None

    tracing.tracer.configure(trace_processors=[Drop()])
    ddtrace.patch(fastapi=True)


def block(queue: Queue, func: Callable[..., Any], context: Context, tasks: int = TASKS) -> Block:
    """Return the measurement of a queue: the seconds of a task, with the queue's own share."""

    async def measure() -> float:
        token = otel_context.attach(context)
        started_at = perf_counter()
        of_request = queue()
        for number in range(tasks):
            of_request.add_task(func, number)
        await of_request()
        del of_request
        seconds = perf_counter() - started_at
        otel_context.detach(token)
        return seconds / tasks

    return measure


async def peers(configuration: Configuration) -> dict[str, tuple[Queue, Context]]:
    """Return the queues to compare, with the context of a request in which each is used."""
    in_fastapi = await context_of(FastAPI(), configuration.sampled)
    queues: dict[str, tuple[Queue, Context]] = {
        PLAIN: (starlette.background.BackgroundTasks, in_fastapi),
        BARE: (MeasuredTasks if configuration.metrics else BareTasks, in_fastapi),
        SUBJECT: (TracedBackgroundTasks, in_fastapi),
    }
    if configuration.ddtrace:
        patch_ddtrace()
        return {**queues, DDTRACE: (BackgroundTasks, await context_of(FastAPI(telemetry={"tracing": False}), True))}
    app = FastAPI()
    FastAPIInstrumentor.instrument_app(app)
    ContribTask.__call__ = starlette.background.BackgroundTask.__call__  # type: ignore[method-assign]
    in_contrib = await context_of(app, configuration.sampled)
    FastAPIInstrumentor.uninstrument_app(app)
    return {**queues, FASTAPI: (BackgroundTasks, in_fastapi), CONTRIB: (ContribTasks, in_contrib)}


async def measure(name: str, rounds: int) -> Rounds:
    """Measure the peers in this process."""
    configuration = CONFIGURATIONS[name]
    if configuration.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: configuration.cores])
    configure(configuration)
    queues = await peers(configuration)
    blocks = {peer: block(queue, configuration.func, context) for peer, (queue, context) in queues.items()}
    return await interleave(blocks, rounds)


def row(name: str, processes: Processes) -> Row:
    """Return the row of the table for a configuration."""
    configuration = CONFIGURATIONS[name]
    return Row(configuration.title, "µs", processes, configuration.figures)


if __name__ == "__main__":
    report(measure(sys.argv[1], int(sys.argv[2])))
