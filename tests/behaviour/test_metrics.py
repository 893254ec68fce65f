"""The five instruments."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException
from httpx import AsyncClient
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv.schemas import Schemas
from starlette.background import BackgroundTask

from tests.conftest import Metrics, Spans, collect_garbage
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks


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

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("meter broke")

    monkeypatch.setattr(provider, "get_meter", broken)
    tasks.add_task(ran.append, 1)
    await tasks()
    tasks.add_task(ran.append, 2)
    tasks.tasks.pop()

    assert ran == [1]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "The background task list.append cannot be measured."
    ] * 2
    provider.shutdown()


async def test_an_instrument_that_raises(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instruments that raise are logged, and cost the task nothing; it is active no longer when it has ended."""
    own = Metrics()

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("instrument broke")

    tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=own.provider))
    ran: list[int] = []
    tasks.add_task(ran.append, 1)
    monkeypatch.setattr(Histogram, "record", broken)
    monkeypatch.setattr(Counter, "add", broken)
    await tasks()
    tasks.add_task(ran.append, 2)
    tasks.tasks.pop()

    assert ran == [1]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"The {what} of the background task list.append could not be measured." for what in ("start", "end", "loss")
    ]
    assert own.active() == {"list.append": 0}
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
        "background_task.waiting 0",
    ]
    assert done.stderr == ""


async def test_waiting(app: FastAPI, client: AsyncClient, measured: Metrics) -> None:
    """`background_task.waiting` is the number of tasks that were added, have not started and are not lost."""
    seen: list[int] = []

    def look() -> None:
        (count,) = measured.waiting().values()
        seen.append(count)

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        for _ in range(3):
            tasks.add_task(look)
        look()

    @app.get("/lost")
    async def lost(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(look)
        look()
        raise HTTPException(402)

    await client.get("/")
    await client.get("/lost")
    gc.collect()
    look()

    assert seen == [3, 2, 1, 0, 1, 0]
    assert measured["background_task.waiting"].unit == "{task}"
    assert not measured["background_task.waiting"].data.is_monotonic


def make_function(number: int) -> Callable[[], None]:
    def made() -> None: ...

    made.__qualname__ = f"made_{number}"
    return made


async def test_what_is_remembered_is_bounded(measured: Metrics) -> None:
    """Of functions that are made on the fly, the last thousand and those that have tasks are remembered."""
    waits = TracedBackgroundTasks()
    waits.add_task(make_function(0))

    for number in range(1, 1500):
        tasks = TracedBackgroundTasks()
        tasks.add_task(make_function(number))
        tasks.tasks.clear()
    collect_garbage()
    waits.add_task(make_function(0))

    waiting = measured.waiting()
    assert len(waiting) == 1024
    assert waiting["tests.behaviour.test_metrics.made_0"] == 2
    await waits()
    assert measured.waiting()["tests.behaviour.test_metrics.made_0"] == 0


def run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_provider_that_the_environment_names_late() -> None:
    """Providers that the environment names behind the import, as a `.env` file does, are ours."""
    lines = run("""
        import asyncio, os
        from traced_tasks import TracedBackgroundTasks
        os.environ["OTEL_PYTHON_TRACER_PROVIDER"] = "sdk_tracer_provider"
        os.environ["OTEL_PYTHON_METER_PROVIDER"] = "sdk_meter_provider"
        from opentelemetry import metrics, trace

        def look():
            print(type(trace.get_current_span()).__module__)

        tasks = TracedBackgroundTasks()
        tasks.add_task(look)
        asyncio.run(tasks())
        print(type(trace._TRACER_PROVIDER).__module__, type(metrics._internal._METER_PROVIDER).__module__)
    """)

    assert lines == ["opentelemetry.sdk.trace", "opentelemetry.sdk.trace opentelemetry.sdk.metrics._internal"]


def test_a_fork_while_instruments_are_made() -> None:
    """A process that is forked off while another thread makes instruments makes its own: nothing is left locked."""
    lines = run("""
        import asyncio, os, threading, time
        from opentelemetry.sdk.metrics import MeterProvider
        from traced_tasks import TaskTracing, TracedBackgroundTasks

        class Slow(MeterProvider):
            def get_meter(self, *args, **kwargs):
                inside.set()
                time.sleep(0.2)
                return super().get_meter(*args, **kwargs)

        async def work(): ...

        def run(provider):
            tasks = TracedBackgroundTasks(tracing=TaskTracing(meter_provider=provider))
            tasks.add_task(work)
            asyncio.run(tasks())

        inside = threading.Event()
        thread = threading.Thread(target=run, args=[Slow()])
        thread.start()
        inside.wait()
        pid = os.fork()
        if pid == 0:
            run(MeterProvider())
            print("child", flush=True)
            os._exit(0)
        thread.join()
        os.waitpid(pid, 0)
        print("parent")
    """)

    assert lines == ["child", "parent"]


async def test_the_schema(measured: Metrics, spans: Spans) -> None:
    """Spans and metrics name the version of the semantic conventions that their names are from."""
    await TracedBackgroundTask(print)()

    (span,) = spans()
    assert span.instrumentation_scope is not None
    # One that OpenTelemetry's own package knows, if that is not older.
    known = [each.value for each in Schemas]
    assert span.instrumentation_scope.schema_url in (*known, "https://opentelemetry.io/schemas/1.44.0")
    data: Any = measured.reader.get_metrics_data()
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.schema_url == span.instrumentation_scope.schema_url
