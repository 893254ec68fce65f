"""A task whose spans the live page records, while nobody looks at it.

`python -m tests.benchmarks.live ROUNDS` measures it in its process.
"""

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from tests.benchmarks.bare import notify
from tests.benchmarks.harness import SUBJECT, Block, Figure, Processes, Rounds, Row, interleave, report
from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks.live import TasksPage

WITHOUT = "without the page"
TASKS = 40  # of a request


def provider() -> TracerProvider:
    """Return a provider that drops what it records, at no cost."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor())
    return provider


def block(provider: TracerProvider) -> Block:
    """Return the measurement of a request's tasks: the seconds of one, with its share of the request's span."""
    tracing = TaskTracing(tracer_provider=provider)
    tracer = provider.get_tracer("requests")

    async def measure() -> float:
        started_at = perf_counter()
        request = tracer.start_span("POST /notifications")
        token = otel_context.attach(trace.set_span_in_context(request))
        tasks = TracedBackgroundTasks(tracing=tracing)
        for number in range(TASKS):
            tasks.add_task(notify, number)
        request.end()
        await tasks()
        otel_context.detach(token)
        del tasks
        return (perf_counter() - started_at) / TASKS

    return measure


def peers() -> dict[str, Callable[[], Block]]:
    """Return what makes the measurement of each peer."""

    def with_page() -> Block:
        shown: Any = provider()
        TasksPage(shown)
        return block(shown)

    return {SUBJECT: with_page, WITHOUT: lambda: block(provider())}


async def measure(rounds: int) -> Rounds:
    """Measure both in this process."""
    return await interleave({name: make() for name, make in peers().items()}, rounds)


def row(processes: Processes) -> Row:
    """Return the row of the table. Traced tasks take what a bare span takes, so 1.40 of it is 0.4 of a bare span."""
    return Row("a task, SDK tracing, with the live page", "µs", processes, [Figure(WITHOUT, "at most", 1.40)])


if __name__ == "__main__":
    report(measure(int(sys.argv[1])))
