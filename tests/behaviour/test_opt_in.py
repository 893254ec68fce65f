"""Who gets a span: the routes and dependencies that annotate a parameter, and no other."""

import functools
import importlib
import pkgutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import Token
from importlib.util import find_spec
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from httpx import AsyncClient
from opentelemetry import baggage, context, trace
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as StarletteBackgroundTasks
from starlette.types import ASGIApp

import traced_tasks
from tests.conftest import Spans, is_child
from traced_tasks import TaskTracing, TracedBackgroundTasks
from traced_tasks import _background as traced_background

LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link"))]


async def test_an_annotated_parameter_in_an_async_handler(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """The annotation alone gives an async task of an async handler a span in which its own spans lie."""

    async def notify(user_id: int) -> None:
        with trace.get_tracer("mine").start_as_current_span(f"mail {user_id}"):
            pass

    @app.post("/checkout")
    async def checkout(tasks: TracedBackgroundTasks) -> dict[str, bool]:
        tasks.add_task(notify, user_id=42)
        return {"ok": True}

    response = await client.post("/checkout")

    assert response.json() == {"ok": True}
    assert is_child(spans["mail 42"], spans["background_task notify"])
    assert spans["background_task notify"].context.trace_id == spans["POST /checkout"].context.trace_id


async def test_an_annotated_parameter_in_a_sync_handler(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A sync task of a sync handler, each in a worker thread, has a span in which its own spans lie."""

    def notify(user_id: int) -> None:
        with trace.get_tracer("mine").start_as_current_span(f"mail {user_id}"):
            pass

    @app.post("/checkout")
    def checkout(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(notify, user_id=42)

    await client.post("/checkout")

    assert is_child(spans["mail 42"], spans["background_task notify"])
    assert spans["background_task notify"].context.trace_id == spans["POST /checkout"].context.trace_id


async def test_dependencies(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """The annotation works in functions, generators and classes that are dependencies, sync and async."""
    ran: list[str] = []

    def sync_function(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, "sync function")

    async def async_function(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, "async function")

    def sync_generator(tasks: TracedBackgroundTasks) -> Iterator[None]:
        tasks.add_task(ran.append, "sync generator")
        yield

    async def async_generator(tasks: TracedBackgroundTasks) -> AsyncIterator[None]:
        tasks.add_task(ran.append, "async generator")
        yield

    class Class:
        def __init__(self, tasks: TracedBackgroundTasks) -> None:
            tasks.add_task(ran.append, "class")

    dependencies = [sync_function, async_function, sync_generator, async_generator, Class]

    @app.get("/", dependencies=[Depends(dependency) for dependency in dependencies])
    async def handler() -> None: ...

    await client.get("/")

    assert ran == ["sync function", "async function", "sync generator", "async generator", "class"]
    assert [span.name for span in spans.tasks()] == ["background_task list.append"] * 5


async def test_other_routes_stay_as_they_are(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A route that did not opt in has FastAPI's own queue, whose tasks have no span of ours."""
    queues: list[BackgroundTasks] = []

    @app.get("/traced")
    async def traced(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(queues.append, tasks)

    @app.get("/plain")
    async def plain(tasks: BackgroundTasks) -> None:
        tasks.add_task(queues.append, tasks)

    await client.get("/traced")
    await client.get("/plain")

    assert [type(queue) for queue in queues] == [traced_background.TracedBackgroundTasks, BackgroundTasks]
    assert len(spans.tasks()) == 1


async def test_nothing_is_patched(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """After a traced request the classes of FastAPI and Starlette have the methods they had before."""
    methods = {(cls, name): cls.__dict__[name] for cls in BackgroundTasks.__mro__[:-1] for name in vars(cls)}

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(print)

    await client.get("/")

    assert spans.tasks()
    assert {(cls, name): cls.__dict__[name] for cls in BackgroundTasks.__mro__[:-1] for name in vars(cls)} == methods


@pytest.mark.parametrize("style", ["child", "link"])
async def test_a_queue_shared_with_plain_parameters(
    app: FastAPI, client: AsyncClient, spans: Spans, style: str
) -> None:
    """Plain and traced parameters of one request share one queue: its order is kept, each task has one span."""
    ran: list[str] = []

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "plain, before the adoption")

    def between(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "plain, after the adoption")

    tracing = TaskTracing(propagation_style=style)  # type: ignore[arg-type]

    @app.get("/", dependencies=[Depends(before)])
    async def handler(
        first: Annotated[TracedBackgroundTasks, Depends(tracing)],
        dependency: Annotated[None, Depends(between)],
        second: TracedBackgroundTasks,
        plain: BackgroundTasks,
    ) -> None:
        second.add_task(ran.append, "second traced")
        plain.add_task(ran.append, "plain, in the handler")
        first.add_task(ran.append, "first traced")

    await client.get("/")

    assert ran == [
        "plain, before the adoption",
        "plain, after the adoption",
        "second traced",
        "plain, in the handler",
        "first traced",
    ]
    request = spans["GET /"].context.trace_id
    in_trace = [span.context.trace_id == request for span in spans.tasks()]
    assert in_trace == ([True] * 5 if style == "child" else [False, False, True, False, False])


async def test_a_plain_task_from_before_the_adoption(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """What a plain parameter queued before the adoption runs in the context of the adoption."""
    tokens: list[Token[context.Context]] = []
    seen: list[object] = []

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(baggage.get_baggage("user")))

    async def authenticate() -> None:
        tokens.append(context.attach(baggage.set_baggage("user", "42")))

    @app.get("/", dependencies=[Depends(before), Depends(authenticate)])
    async def handler(tasks: TracedBackgroundTasks) -> None:
        context.detach(tokens.pop())

    await client.get("/")

    assert seen == ["42"]
    assert len(spans.tasks()) == 1


async def test_a_task_appended_to_the_list(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A plain task put straight into `tasks.tasks` has its span as well."""

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.tasks.append(BackgroundTask(print))

    await client.get("/")

    assert is_child(spans["background_task print"], spans["GET /"])


async def test_an_own_class_of_task_runs_in_its_own_way(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """A subclass of Starlette's task with its own `__call__` is called by that, in a span of its class's name."""

    class Twice(BackgroundTask):
        async def __call__(self) -> None:
            await super().__call__()
            await super().__call__()

    ran: list[int] = []

    def before(tasks: BackgroundTasks) -> None:
        tasks.tasks.append(Twice(ran.append, 1))

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks) -> None: ...

    await client.get("/")

    assert ran == [1, 1]
    assert [span.name for span in spans.tasks()] == ["background_task Twice"]


async def test_a_task_adds_a_task_while_the_queue_runs(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """What a task adds to its running queue runs after it, as a child of its span."""

    def second() -> None: ...

    @app.get("/")
    async def handler(tasks: TracedBackgroundTasks) -> None:
        def first() -> None:
            tasks.add_task(second)

        tasks.add_task(first)

    await client.get("/")

    assert [span.name for span in spans.tasks()] == ["background_task first", "background_task second"]
    assert is_child(spans["background_task second"], spans["background_task first"])


async def test_an_override_in_the_users_tests(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """`app.dependency_overrides` finds a route's tracing by equal options."""

    @app.get("/")
    async def handler(tasks: LinkedTasks) -> None:
        tasks.add_task(print)

    app.dependency_overrides[TaskTracing(propagation_style="link")] = TaskTracing(span_name="overridden")

    await client.get("/")

    assert [span.name for span in spans.tasks()] == ["overridden"]


async def test_fastapi_sees_no_parameters(app: FastAPI, client: AsyncClient) -> None:
    """The annotation adds nothing to the OpenAPI schema."""

    @app.get("/traced")
    async def traced(tasks: TracedBackgroundTasks, linked: LinkedTasks) -> None: ...

    schema = (await client.get("/openapi.json")).json()

    assert "parameters" not in schema["paths"]["/traced"]["get"]
    assert "requestBody" not in schema["paths"]["/traced"]["get"]


@pytest.mark.parametrize("make", ["lambda", "decorated call", "call that returns a coroutine"])
async def test_a_plain_task_runs_as_it_would(app: FastAPI, client: AsyncClient, spans: Spans, make: str) -> None:
    """A plain task in the queue is awaited, whatever its function or its `__call__` looks like from outside."""
    ran: list[str] = []

    async def work() -> None:
        ran.append(make)

    def decorated(call: Callable[[Any], Any]) -> Any:
        return functools.wraps(call)(lambda self: call(self))

    class Decorated(BackgroundTask):
        __call__ = decorated(BackgroundTask.__call__)

    class Returning(BackgroundTask):
        def __call__(self) -> Any:
            return super().__call__()

    def before(tasks: BackgroundTasks) -> None:
        task = {"lambda": BackgroundTask, "decorated call": Decorated}.get(make, Returning)(lambda: work())
        task.is_async = True
        tasks.tasks.append(task)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks) -> None: ...

    await client.get("/")

    assert ran == [make]
    assert len(spans.tasks()) == 1


@pytest.mark.parametrize("queue_wrongly", [lambda tasks: tasks.add_task(None), lambda tasks: tasks.tasks.append(None)])
async def test_a_wrong_plain_task_fails_where_it_would(
    app: FastAPI, client: AsyncClient, spans: Spans, queue_wrongly: Callable[[BackgroundTasks], None]
) -> None:
    """What a plain parameter queued wrongly fails in the background, behind what was queued before it."""
    ran: list[int] = []

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, 1)
        queue_wrongly(tasks)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks) -> None:
        ran.append(0)

    with pytest.raises(TypeError, match="callable"):
        await client.get("/")

    assert ran == [0, 1]
    assert [span.status.is_ok for span in spans.tasks()] == [True, False]


async def test_a_plain_task_of_many_requests(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """One plain task object that every request queues belongs to each request in turn."""
    shared = BackgroundTask(print)

    def before(tasks: BackgroundTasks) -> None:
        tasks.tasks.append(shared)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks) -> None: ...

    await client.get("/")
    await client.get("/")

    first, second = (span.context.trace_id for span in spans.tasks())
    assert first != second
    assert type(shared) is BackgroundTask


@pytest.mark.parametrize("inner", [BackgroundTasks, StarletteBackgroundTasks, traced_background.TracedBackgroundTasks])
async def test_a_queue_in_the_queue(spans: Spans, inner: type[StarletteBackgroundTasks]) -> None:
    """A queue among the tasks is no task: each of its own has one span."""
    queue = inner()
    queue.add_task(print, "one")
    queue.add_task(repr, "two")

    await traced_background.TracedBackgroundTasks([queue])()

    assert [span.name for span in spans()] == ["background_task print", "background_task repr"]


async def test_the_list_is_replaced(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """Who assigns `tasks` in a request with several views on its queue replaces it for that one, which FastAPI runs."""
    ran: list[str] = []

    def dependency(tasks: LinkedTasks) -> None:
        tasks.add_task(ran.append, "withdrawn")

    @app.get("/", dependencies=[Depends(dependency)])
    async def handler(tasks: TracedBackgroundTasks) -> None:
        named = tasks.with_options(span_name="named")
        tasks.tasks = []
        tasks.add_task(ran.append, "tasks")
        named.add_task(ran.append, "named")

    await client.get("/")

    assert ran == ["withdrawn", "named"]


async def test_a_list_that_was_held_before(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """What somebody adds to the queue's list, which they got before the adoption, runs: it is still the same list."""
    ran: list[str] = []
    held: list[list[BackgroundTask]] = []

    def before(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "before")
        held.append(tasks.tasks)

    @app.get("/", dependencies=[Depends(before)])
    async def handler(tasks: TracedBackgroundTasks) -> None:
        tasks.add_task(ran.append, "traced")
        held[0].append(BackgroundTask(ran.append, "held"))

    await client.get("/")

    assert ran == ["before", "traced", "held"]
    assert len(spans.tasks()) == 3


async def test_a_forgotten_depends(app: FastAPI, client: AsyncClient, spans: Spans) -> None:
    """The options in an annotation are those of the parameter, with `Depends(...)` around them and without it."""

    @app.get("/")
    async def handler(
        bare: Annotated[TracedBackgroundTasks, TaskTracing(span_name="bare")],
        spelled_out: Annotated[TracedBackgroundTasks, Depends(TaskTracing(span_name="spelled out"))],
        both: Annotated[TracedBackgroundTasks, TaskTracing(span_name="one"), TaskTracing(span_name="last")],
    ) -> None:
        bare.add_task(print)
        spelled_out.add_task(print)
        both.add_task(print)

    await client.get("/")

    assert [span.name for span in spans.tasks()] == ["bare", "spelled out", "last"]


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("where", ["app", "router", "include"])
async def test_a_whole_application(
    connect: Callable[[ASGIApp], AsyncClient], spans: Spans, where: str, bare: bool
) -> None:
    """As a dependency of an application or a router `TaskTracing` traces what plain annotations add."""
    tracing: Any = TaskTracing(attributes={"team": "shop"})
    dependencies = [tracing if bare else Depends(tracing)]
    app = FastAPI(dependencies=dependencies if where == "app" else None)
    router = APIRouter(dependencies=dependencies if where == "router" else None)

    def audit(tasks: BackgroundTasks) -> None:
        tasks.add_task(repr, 1)

    @router.get("/", dependencies=[Depends(audit)])
    async def handler(tasks: BackgroundTasks) -> None:
        with trace.get_tracer("mine").start_as_current_span("step"):
            tasks.add_task(print)

    app.include_router(router, dependencies=dependencies if where == "include" else None)

    await connect(app).get("/")

    audited, added = spans.tasks()
    assert (audited.attributes or {})["team"] == (added.attributes or {})["team"] == "shop"
    assert is_child(added, spans["step"])


async def test_the_alias_as_a_class(spans: Spans) -> None:
    """The alias makes a queue by hand, with tasks and options."""
    ran: list[int] = []
    tasks = TracedBackgroundTasks([BackgroundTask(ran.append, 1)], tracing=TaskTracing(span_name="mine"))
    tasks.add_task(ran.append, 2)

    await tasks()

    assert ran == [1, 2]
    assert [span.name for span in spans()] == ["mine", "mine"]


def test_the_class_is_not_offered() -> None:
    """No public module has the class under the alias's name, which an editor would import by mistake."""
    for module in (traced_tasks, *map(importlib.import_module, public_modules())):
        assert not isinstance(vars(module).get("TracedBackgroundTasks"), type)


ENGINES = ("taskiq", "celery", "dramatiq")


def public_modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(traced_tasks.__path__, "traced_tasks.")]
    public = [name for name in names if "._" not in name and ".demo" not in name]
    # Those for an engine need that.
    return [name for name in public if name.partition(".")[2] not in ENGINES or find_spec(name.partition(".")[2])]
