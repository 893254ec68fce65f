"""Right use. The type checkers accept every line."""

from typing import Annotated, assert_type

import dramatiq
from dramatiq.brokers.stub import StubBroker
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import JSONResponse
from opentelemetry.trace import Link, SpanContext, SpanKind
from starlette.background import BackgroundTask
from taskiq import InMemoryBroker

from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks import _background as traced_background
from traced_tasks.dramatiq import TracedTasksMiddleware as DramatiqMiddleware
from traced_tasks.taskiq import TracedTasksMiddleware as TaskiqMiddleware

app = FastAPI()
link = Link(SpanContext(1, 1, is_remote=True))

LinkedTasksToo = Annotated[TracedBackgroundTasks, TaskTracing(propagation_style="link", context_variables=True)]
traced = FastAPI(dependencies=[TaskTracing()])
LinkedTasks = Annotated[TracedBackgroundTasks, Depends(TaskTracing(propagation_style="link", links=[link]))]


async def notify(user_id: int, *, retry: bool = False) -> None: ...


def log(text: str, *words: str) -> int:
    return len(text)


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks, linked: LinkedTasks) -> JSONResponse:
    assert_type(tasks, traced_background.TracedBackgroundTasks)
    assert_type(linked, traced_background.TracedBackgroundTasks)
    tasks.add_task(notify, 42)
    tasks.add_task(notify, user_id=42, retry=True)
    tasks.add_task(log, "a", "b", "c")
    tasks.add_task(lambda: None)
    linked.with_options(span_name="send receipt", attributes={"tier": "gold", "items": [1, 2]}).add_task(notify, 1)
    assert_type(tasks.with_options(span_kind=SpanKind.CLIENT, links=(link,)), traced_background.TracedBackgroundTasks)
    plain: BackgroundTasks = tasks
    tasks_so_far: list[BackgroundTask] = plain.tasks
    return JSONResponse({"tasks": len(tasks_so_far)}, background=TracedBackgroundTask(notify, 42))


async def by_hand() -> JSONResponse:
    tasks = TracedBackgroundTasks([BackgroundTask(log, "a")], tracing=TaskTracing(record_exception=False))
    tasks.add_task(log, "b")
    assert_type(await tasks(), None)
    return JSONResponse({}, background=tasks)


class Audited(TracedBackgroundTasks):
    audit: str = ""


assert_type(Audited().with_options(), Audited)


tracing = TaskTracing(attributes={"place": "worker"})
broker = InMemoryBroker().with_middlewares(TaskiqMiddleware(tracing=tracing))
stub = StubBroker()
stub.add_middleware(DramatiqMiddleware(tracing=tracing))
WorkerTasks = Annotated[TracedBackgroundTasks, TaskTracing(broker=broker)]


@broker.task
async def send_receipt(user_id: int) -> None: ...


@dramatiq.actor(broker=stub)
def send_mail(user_id: int) -> None: ...


def hand_over(tasks: WorkerTasks) -> None:
    tasks.add_task(send_receipt, 42)
    tasks.add_task(send_receipt, user_id=42)
    tasks.with_options(broker=stub).add_task(send_mail, user_id=42)
    tasks.with_options(broker=stub).add_task(send_mail.send, 42)
