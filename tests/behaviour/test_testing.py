"""What `traced_tasks.testing` says of the tasks of an application, in the tests of that."""

import asyncio
import functools
import gc
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Annotated, Any
from unittest import mock

import anyio
import pytest
from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from httpx import AsyncClient
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from starlette.background import BackgroundTask

from tests.conftest import Spans
from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks, _lost, _run, _telemetry
from traced_tasks.testing import RecordedTask, RecordedTasks, record_tasks


def notify(user_id: int = 0, **options: object) -> None: ...


async def charge() -> None:
    raise ValueError("card 4242 refused")


class Retried(TracedBackgroundTask):
    """A task class of a user's own."""

    async def __call__(self) -> None:
        await super().__call__()


class NeverCalled(TracedBackgroundTask):
    """One whose call never calls ours."""

    async def __call__(self) -> None:
        ran.append("its own way")


class Shop:
    """A service that a handler makes, and that keeps the queue of its request."""

    def __init__(self, tasks: Any) -> None:
        self.tasks = tasks
        tasks.add_task(self.notify, 42)

    def notify(self, user_id: int) -> None: ...


ran: list[str] = []


@pytest.fixture(autouse=True)
def _hooks() -> Generator[None]:
    before = TracedBackgroundTask._capture, _run.start, _run.end, _lost.report
    yield
    assert before == (TracedBackgroundTask._capture, _run.start, _run.end, _lost.report)
    ran.clear()


async def test_a_task_that_completes(app: FastAPI, client: AsyncClient) -> None:
    """A record has what was given to `add_task`, how that is traced, and what became of it."""
    key = otel_context.create_key("tenant")

    @app.post("/checkout")
    async def checkout(tasks: Annotated[TracedBackgroundTasks, TaskTracing(attributes={"shop": 1})]) -> None:
        token = otel_context.attach(otel_context.set_value(key, "blue"))
        tasks.with_options(span_name="mail").add_task(notify, 42, tier="gold")
        otel_context.detach(token)

    with record_tasks() as tasks:
        await client.post("/checkout")

    task = tasks.one(notify)
    assert [*tasks] == tasks[0:1] == [task]
    assert (task.func, task.args, task.kwargs) == (notify, (42,), {"tier": "gold"})
    assert task.function == f"{__name__}.notify"
    assert (task.outcome, task.exception, task.reason) == ("completed", None, None)
    assert (task.tracing.span_name, task.tracing.attributes) == ("mail", {"shop": 1})
    assert otel_context.get_value(key, task.context) == "blue"
    assert task.duration is not None
    assert task.queue_duration is not None
    assert 0 <= task.duration < 10 and 0 <= task.queue_duration < 10  # noqa: PT018
    assert repr(task) == f"{__name__}.notify(42, tier='gold') completed"
    assert repr(tasks) == f"<RecordedTasks: [{task!r}]>"


async def test_a_task_that_fails(app: FastAPI, client: AsyncClient) -> None:
    """A failure is an outcome, with the exception, and what it skips is a loss, with the reason."""

    @app.post("/checkout")
    def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(charge)
        tasks.add_task(notify, 42)

    with record_tasks(allow_lost=True) as tasks, pytest.raises(ValueError, match="4242"):
        await client.post("/checkout")

    failed, skipped = tasks
    assert (failed.outcome, str(failed.exception)) == ("failed", "card 4242 refused")
    assert repr(failed) == f"{__name__}.charge() failed with ValueError"
    assert (skipped.outcome, skipped.duration, skipped.queue_duration) == ("skipped", None, None)
    assert skipped.reason == f"{__name__}.charge, before it in the queue, failed with ValueError"


async def test_a_loss_is_an_error(app: FastAPI, client: AsyncClient) -> None:
    """A task that was lost is an error at the end of the block, which says which, why, and what to do."""

    @app.post("/checkout")
    def checkout(tasks: TracedBackgroundTasks) -> JSONResponse:
        tasks.add_task(notify, 42, note="x" * 1000)
        return JSONResponse({}, background=BackgroundTask(notify))

    with pytest.raises(AssertionError) as info, record_tasks():
        await client.post("/checkout")

    first, second, *_, last = str(info.value).splitlines()
    assert first == "1 background task was lost:"
    assert second.startswith(f"  {__name__}.notify(42, note='xxxx")
    assert "...xxxxxxxxxxxxx') dropped: nothing ran it. For example, the handler raised after add_task" in second
    assert len(second) < 500
    assert last == "If that is meant: record_tasks(allow_lost=True), or recorded_tasks.allow_lost = True."


async def test_what_garbage_holds(app: FastAPI, client: AsyncClient) -> None:
    """What only garbage refers to is found to be dropped by `flush()`, and at the end of the block."""

    def drop() -> None:
        cycle: list[Any] = [TracedBackgroundTask(notify)]
        cycle.append(cycle)

    with record_tasks(allow_lost=True) as tasks:
        gc.collect()
        gc.disable()
        drop()
        assert [task.outcome for task in tasks] == [None]
        tasks.flush()
        assert [task.outcome for task in tasks] == ["dropped"]
        drop()
    gc.enable()

    assert [task.outcome for task in tasks] == ["dropped", "dropped"]


@pytest.mark.parametrize("held", [False, True])
async def test_arguments_that_refer_to_the_queue(app: FastAPI, client: AsyncClient, held: bool) -> None:
    """A task whose function, or an argument of it, refers to its queue is dropped all the same."""

    @app.post("/shop")
    async def shop(tasks: TracedBackgroundTasks) -> None:
        Shop(tasks)
        raise HTTPException(402)

    waits = TracedBackgroundTasks()
    with record_tasks(held=held, allow_lost=True) as tasks:
        Shop(waits)
        await client.post("/shop")
        tasks.flush()
        assert [task.outcome for task in tasks] == ["held" if held else None, "dropped"]
        assert [task.args for task in tasks.of(Shop.notify)] == [(42,), (42,)]
        await waits()

    assert [task.outcome for task in tasks] == ["held" if held else "completed", "dropped"]


async def test_a_task_that_still_waits() -> None:
    """A task that is neither run nor lost at the end of the block is an error, too."""
    with pytest.raises(AssertionError) as info, record_tasks(allow_lost=True):
        task = TracedBackgroundTask(notify, 42)
    await task()

    assert str(info.value).startswith("1 background task was still waiting, neither run nor lost:\n")
    assert f"\n  {__name__}.notify(42) waits\nSomething refers to it: " in str(info.value)


async def test_a_body_that_never_ran() -> None:
    """A function that returns what nobody awaits or iterates has not completed."""

    def generate() -> Generator[int]:
        yield 1

    def make() -> Any:
        return charge()

    queue = TracedBackgroundTasks()
    with record_tasks(allow_lost=True) as tasks:
        queue.add_task(generate)
        queue.add_task(make)
        with pytest.warns(RuntimeWarning, match="never awaited"):
            await queue()

    assert [task.outcome for task in tasks] == ["never_iterated", "never_awaited"]
    assert "which nobody iterates" in str(tasks[0].reason)


async def test_held_tasks(app: FastAPI, client: AsyncClient) -> None:
    """Tasks that are held do not run, whatever their class and queue; one that is lost is lost all the same."""

    @app.post("/checkout")
    def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(charge)
        tasks.tasks.append(BackgroundTask(charge))
        tasks.tasks += [Retried(charge), NeverCalled(charge)]

    @app.post("/response")
    def response() -> JSONResponse:
        return JSONResponse({}, background=NeverCalled(notify))

    @app.post("/refused")
    async def refused(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify)
        raise HTTPException(402)

    with record_tasks(held=True) as tasks:
        await client.post("/checkout")
        await client.post("/response")
        task = Retried(notify)
        assert isinstance(task, Retried)

    assert [task.outcome for task in tasks] == ["held"] * 6
    assert ran == []
    assert [task.func for task in tasks] == [charge, charge, charge, charge, notify, notify]

    with record_tasks(held=True, allow_lost=True) as tasks:
        await client.post("/refused")
    assert [task.outcome for task in tasks] == ["dropped"]


async def test_held_tasks_of_classes_of_all_kinds() -> None:
    """A class of a user's own may have slots, do more in its `__init__`, and refuse subclasses."""

    class Numbered(TracedBackgroundTask):
        __slots__ = ("number",)

        def __init__(self, func: Any) -> None:
            super().__init__(func)
            self.number = 1
            self.count()

        def count(self) -> None:
            self.number += 1

    class Refusing(TracedBackgroundTask):
        def __init_subclass__(cls, *, number: int) -> None: ...

    numbered = None
    with record_tasks(held=True) as tasks:
        numbered = Numbered(charge)
        await numbered()
        await Refusing(charge)()

    assert [task.outcome for task in tasks] == ["held", "held"]
    assert numbered.number == 2


async def test_a_task_that_runs_again() -> None:
    """A task that its own class retries has the outcome of its last run, and nothing of those before."""

    class Persistent(TracedBackgroundTask):
        async def __call__(self) -> None:
            for _ in range(2):
                with suppress(LookupError):
                    await super().__call__()

    def flaky() -> Any:
        ran.append("flaky")
        if len(ran) == 1:
            raise LookupError

    with record_tasks() as tasks:
        await Persistent(flaky)()

    assert len(ran) == 2
    assert (tasks.one(flaky).outcome, tasks[0].exception, tasks[0].reason) == ("completed", None, None)


async def test_a_task_that_has_every_attribute() -> None:
    """A task from before the block is none of it, even if its class answers for each name."""

    class Obliging(TracedBackgroundTask):
        def __getattr__(self, name: str) -> str:
            return name

    task = Obliging(notify)
    with record_tasks() as tasks:
        await task()
    assert [*tasks] == []


async def test_mocks() -> None:
    """A mock is a function like any other."""
    queue = TracedBackgroundTasks()
    mocks = [mock.Mock(), mock.MagicMock(), mock.AsyncMock(), mock.create_autospec(notify)]
    with record_tasks() as tasks:
        for each in mocks:
            queue.add_task(each, 42)
        await queue()

    assert [tasks.one(each).outcome for each in mocks] == ["completed"] * 4
    with pytest.raises(AssertionError, match=r"^no tasks of <Mock id='\d+'> were added, not one\."):
        tasks.one(mock.Mock())


async def test_what_is_patched(app: FastAPI, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched `add_task` of FastAPI's is not what a traced route calls; a patched function is its task."""

    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify, 42)

    with record_tasks() as tasks, mock.patch("fastapi.BackgroundTasks.add_task") as add_task:
        await client.post("/checkout")
    assert (tasks.one(notify).outcome, add_task.mock_calls) == ("completed", [])

    with record_tasks() as tasks, mock.patch(f"{__name__}.notify") as patched:
        await client.post("/checkout")
    assert tasks.one(patched).args == (42,)
    patched.assert_called_once_with(42)


async def test_tasks_that_are_found_by_their_function(app: FastAPI) -> None:
    """A partial of a function is one of its tasks; `one()` that does not find one lists what there was."""
    queue = TracedBackgroundTasks()
    with record_tasks() as tasks:
        queue.add_task(functools.partial(notify, 1), tier="gold")
        queue.add_task(notify, 2)
        queue.add_task(anyio.sleep, 0)
        await queue()

    assert [task.args for task in tasks.of(notify)] == [(), (2,)]
    assert tasks.one(anyio.sleep).args == (0,)
    with pytest.raises(AssertionError) as info:
        tasks.one(notify)
    assert str(info.value) == (
        f"2 tasks of notify were added, not one. There was:\n  {__name__}.notify(tier='gold') completed\n"
        f"  {__name__}.notify(2) completed\n  anyio.sleep(0) completed"
    )
    with pytest.raises(AssertionError, match=r"^no tasks of charge were added, not one\. There was:"):
        tasks.one(charge)
    with (
        record_tasks() as nothing,
        pytest.raises(AssertionError, match=r"There was: nothing\. \(Only routes that opt in"),
    ):
        nothing.one(notify)
    wrong: Any = "notify"
    with pytest.raises(TypeError, match="by the function that was given to add_task, not by 'notify'"):
        tasks.one(wrong)


def test_a_block_in_a_block() -> None:
    """Blocks inside of others, and in other threads, see each task; one that ends sees no more."""
    other = record_tasks()

    def enter() -> None:
        other.__enter__()

    with record_tasks() as outer:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        with record_tasks() as inner:
            anyio.run(TracedBackgroundTask(notify, 1))
        anyio.run(TracedBackgroundTask(notify, 2))
    other.__exit__(None, None, None)
    anyio.run(TracedBackgroundTask(notify, 3))

    assert [[task.args for task in tasks] for tasks in (outer, inner, other)] == [[(1,), (2,)], [(1,)], [(1,), (2,)]]


def test_a_block_that_is_used_twice() -> None:
    """A block that is entered or left twice says what is wrong."""
    with record_tasks() as tasks:
        pass

    with pytest.raises(RuntimeError, match="is for one block"), tasks:
        pass
    with pytest.raises(RuntimeError, match="left before, or never entered"):
        tasks.__exit__(None, None, None)


def test_an_exception_of_the_block() -> None:
    """An exception of the block goes first."""

    def lose() -> None:
        with record_tasks():
            TracedBackgroundTask(notify)
            raise LookupError

    with pytest.raises(LookupError):
        lose()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_function_that_ends_later() -> None:
    """The outcome comes from the end of the function, also if that is after the block, for nobody waits for it."""
    go = threading.Event()

    async def until(is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not is_so():  # noqa: ASYNC110
                await anyio.sleep(0.01)

    with record_tasks() as tasks:
        task = asyncio.create_task(TracedBackgroundTask(go.wait, 10)())
        await until(lambda: bool(tasks) and tasks[0].queue_duration is not None)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert repr(tasks[0]) == "threading.Event.wait(10) runs"
    go.set()
    await until(lambda: tasks[0].outcome is not None)

    assert (tasks[0].outcome, len(tasks)) == ("completed", 1)
    assert tasks[0].duration is not None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_block_that_ends_while_a_task_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that starts at that very moment, in a thread, runs, and its record is kept up."""
    starts, go = threading.Event(), threading.Event()
    start_span = _telemetry.start_span

    def start_slowly(*args: Any) -> Any:
        starts.set()
        assert go.wait(10)
        return start_span(*args)

    monkeypatch.setattr(_run, "start_span", start_slowly)
    with record_tasks() as tasks:
        task = asyncio.create_task(TracedBackgroundTask(notify, 42)())
        await anyio.to_thread.run_sync(starts.wait, 10)
    assert repr(tasks[0]) == f"{__name__}.notify(42) runs"
    go.set()
    await task

    assert tasks[0].outcome == "completed"


async def test_an_outcome_is_known_when_all_is_told(spans: Spans) -> None:
    """Who waits for an outcome, in another thread, finds the span that belongs to it."""
    known: list[object] = []

    class Watching(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            known.append(tasks[0].outcome)

    spans.provider.add_span_processor(Watching())
    with record_tasks() as tasks:
        await TracedBackgroundTask(notify)()

    assert (known, tasks[0].outcome) == ([None], "completed")


@pytest.mark.filterwarnings("ignore")  # of one httpx or another
def test_the_test_client() -> None:
    """The test client runs the application in a thread and an event loop of its own, and so its tasks."""
    from fastapi.testclient import TestClient

    app = FastAPI(dependencies=[])

    @app.post("/plain")
    def plain(tasks: BackgroundTasks) -> None:
        tasks.add_task(notify, 1)

    @app.post("/traced")
    def traced(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify, 2)

    for backend in ("asyncio", "trio"):
        with record_tasks() as tasks, TestClient(app, backend=backend) as client:
            client.post("/plain")
            client.post("/traced")
        assert [(task.args, task.outcome) for task in tasks] == [((2,), "completed")]


def test_tasks_from_before() -> None:
    """A task that was added before the block is none of it, whatever becomes of it there."""
    tasks_before = [TracedBackgroundTask(notify, 1), TracedBackgroundTask(notify, 2)]
    with record_tasks() as tasks:
        anyio.run(tasks_before.pop())
        tasks_before.clear()
    assert [*tasks] == []


def test_a_value_that_cannot_be_shown() -> None:
    """A value whose `repr()` fails is shown by its type."""

    class Order:
        def __repr__(self) -> str:
            raise ValueError

    with record_tasks() as tasks:
        anyio.run(TracedBackgroundTask(notify, Order()))  # type: ignore[arg-type]

    assert "notify(<Order" in repr(tasks[0])


# All but one of opentelemetry-api 1.42 on Python 3.11.
WARNINGS = ("-W", "error", "-W", "ignore:SelectableGroups dict interface is deprecated:DeprecationWarning")


def test_without_pytest() -> None:
    """Without pytest there is no fixture, and all else."""
    program = "import sys; sys.modules['pytest'] = None; from traced_tasks.testing import *; print(*sorted(dir()))"
    ended = subprocess.run([sys.executable, *WARNINGS, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split()[:2] == ["RecordedTask", "RecordedTasks"]


class UnitTest(unittest.TestCase):
    """Without pytest it is the same."""

    def test_it(self) -> None:
        """A `unittest` can record."""
        tasks = self.enterContext(record_tasks())
        assert isinstance(tasks, RecordedTasks)
        anyio.run(TracedBackgroundTask(notify, 42))
        task: RecordedTask = tasks.one(notify)
        assert task.outcome == "completed"
