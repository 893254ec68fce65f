"""The four instruments."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from httpx import AsyncClient
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from starlette.background import BackgroundTask

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks.metrics import instruments_of


class Metrics:
    """What was measured so far."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def __getitem__(self, name: str) -> Any:
        """The metric with this name, if there is one."""
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            if scope.scope.name == "traced_tasks"
            for metric in scope.metrics
            if metric.name == name
        ]
        return found[0] if found else None

    def points(self, name: str) -> dict[str, Any]:
        """The data points of the metric, by function."""
        metric = self[name]
        return {point.attributes["code.function.name"]: point for point in metric.data.data_points} if metric else {}

    def active(self) -> dict[str, int]:
        return {name: point.value for name, point in self.points("background_task.active").items()}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """What a fresh global meter provider measures."""
    measured = Metrics()
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", measured.provider)
    yield measured
    measured.provider.shutdown()


async def nap() -> None:
    await anyio.sleep(0.02)


def fail() -> None:
    raise ValueError("card 4242 refused")


async def test_durations(app: FastAPI, client: AsyncClient, measured: Metrics) -> None:
    """How long each task ran and how long it waited, in seconds, in buckets from 1 ms to 10 min."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(nap)
        tasks.add_task(print)

    await client.get("/")

    napped = measured.points("background_task.duration")["tests.behaviour.test_metrics.nap"]
    waited = measured.points("background_task.queue.duration")["builtins.print"]
    assert napped.count == 1
    assert 0.02 <= napped.sum < 10
    assert napped.sum - 0.002 <= waited.sum < 10
    for point in (napped, waited):
        assert dict(point.attributes).keys() == {"code.function.name"}
        assert (point.explicit_bounds[0], point.explicit_bounds[-1]) == (0.001, 600)
    assert (measured["background_task.duration"].unit, measured["background_task.queue.duration"].unit) == ("s", "s")


async def test_a_failure(measured: Metrics) -> None:
    """The duration of a failed task has its `error.type`."""
    with pytest.raises(ValueError, match="4242"):
        await TracedBackgroundTask(fail)()

    point = measured.points("background_task.duration")["tests.behaviour.test_metrics.fail"]
    assert point.attributes["error.type"] == "ValueError"


async def test_active(measured: Metrics) -> None:
    """`background_task.active` is the number of tasks that run now, by function, and 0 behind them."""
    seen: list[dict[str, int]] = []
    tasks = TracedBackgroundTasks()
    tasks.add_task(lambda: seen.append(measured.active()))
    tasks.add_task(lambda: seen.append(measured.active()))

    await tasks()

    name = "tests.behaviour.test_metrics.test_active.<locals>.<lambda>"
    assert seen == [{name: 1}, {name: 1}]
    assert measured.active() == {name: 0}
    assert measured["background_task.active"].unit == "{task}"
    assert not measured["background_task.active"].data.is_monotonic


def test_active_in_many_threads(measured: Metrics) -> None:
    """With queues on several event loops and threads at once, each task is counted, and none stays behind."""
    inside, leave = threading.Semaphore(0), threading.Event()

    def sync_work() -> None:
        inside.release()
        leave.wait(10)

    def run() -> None:
        for _ in range(200):
            task = TracedBackgroundTasks([TracedBackgroundTask(str), TracedBackgroundTask(nothing)])
            asyncio.run(task())
        asyncio.run(TracedBackgroundTask(sync_work)())

    async def nothing() -> None: ...

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=60)
    running = measured.active()
    leave.set()
    for thread in threads:
        thread.join()

    assert {name.rpartition(".")[2]: count for name, count in running.items()} == {
        "str": 0,
        "nothing": 0,
        "sync_work": 5,
    }
    assert set(measured.active().values()) == {0}
    assert measured.points("background_task.duration")["builtins.str"].count == 1000


async def test_a_task_that_goes_on_in_a_forked_process(measured: Metrics) -> None:
    """A task that was running when its process was forked off ends there without being counted."""
    of_provider = instruments_of(None)
    assert of_provider is not None

    await TracedBackgroundTask(of_provider.forget_active)()

    assert measured.active() == {}


def test_the_first_tasks_in_many_threads() -> None:
    """Threads that use a provider for the first time at the same moment share one set of instruments."""

    class SlowProvider(MeterProvider):
        def get_meter(self, *args: Any, **kwargs: Any) -> Any:
            made.append(1)
            time.sleep(0.05)
            return super().get_meter(*args, **kwargs)

    made: list[int] = []
    provider = SlowProvider([InMemoryMetricReader()])
    tracing = TaskTracing(meter_provider=provider)

    def run() -> None:
        asyncio.run(TracedBackgroundTasks([BackgroundTask(nap)], tracing=tracing)())

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert made == [1]
    provider.shutdown()


async def test_a_routes_provider(measured: Metrics) -> None:
    """`meter_provider` measures a route's tasks elsewhere."""
    own = Metrics()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=own.provider))
    tasks.add_task(print)

    await tasks()

    assert own.points("background_task.duration").keys() == {"builtins.print"}
    assert measured["background_task.duration"] is None
    own.provider.shutdown()


async def test_exemplars(measured: Metrics, spans: Spans) -> None:
    """The exemplar of a duration refers to the span of its task."""
    await TracedBackgroundTask(print)()

    (exemplar,) = measured.points("background_task.duration")["builtins.print"].exemplars
    (span,) = spans()
    assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)


async def test_a_provider_that_raises(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter provider, or an instrument, that raises leaves the task its run, and is logged."""
    provider = Metrics().provider
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=provider))
    ran: list[int] = []
    tasks.add_task(ran.append, 1)
    del tasks.tasks[0:0]

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("meter broke")

    monkeypatch.setattr(provider, "get_meter", broken)
    await tasks()
    tasks.add_task(ran.append, 2)
    tasks.tasks.pop()

    assert ran == [1]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "The start of the background task list.append could not be measured.",
        "The loss of the background task list.append could not be measured.",
    ]
    provider.shutdown()


async def test_an_instrument_that_raises(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrument that raises at the end of a task is logged, and the task is active no longer."""
    own = Metrics()
    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=own.provider))
    tasks.add_task(print)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("histogram broke")

    of_provider = instruments_of(own.provider)
    assert of_provider is not None
    monkeypatch.setattr(of_provider.duration, "record", broken)
    await tasks()

    assert [record.getMessage() for record in caplog.records] == [
        "The end of the background task builtins.print could not be measured."
    ]
    assert own.active() == {"builtins.print": 0}
    own.provider.shutdown()


def test_a_provider_that_is_set_late() -> None:
    """A global meter provider that is set after import and after the first tasks measures those that come, once."""
    program = """
        import asyncio
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from traced_tasks import TracedBackgroundTask

        asyncio.run(TracedBackgroundTask(str)())
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        asyncio.run(TracedBackgroundTask(str)())
        asyncio.run(TracedBackgroundTask(str)())
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            (point,) = metric.data.data_points
            print(metric.name, getattr(point, "count", getattr(point, "value", None)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)

    assert sorted(done.stdout.splitlines()) == [
        "background_task.active 0",
        "background_task.duration 2",
        "background_task.queue.duration 2",
    ]
    assert done.stderr == ""
