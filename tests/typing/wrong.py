"""Wrong use. Each line is refused: an ignore comment that is not needed is an error itself."""

from dramatiq.brokers.stub import StubBroker
from taskiq import InMemoryBroker

from traced_tasks import TaskTracing, TracedBackgroundTask, TracedBackgroundTasks
from traced_tasks.taskiq import TracedTasksMiddleware

broker = InMemoryBroker()


@broker.task
async def send_receipt(user_id: int) -> None: ...


async def notify(user_id: int, *, retry: bool = False) -> None: ...


async def handler(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(notify, "42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.add_task(notify, user_id="42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.add_task(notify)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.add_task(notify, 42, True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.add_task(notify, 42, retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.add_task("notify")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    tasks.add_task(notify(42))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    tasks.add_tasks(notify, 42)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    tasks.with_options(span_nam="receipt")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.with_options(propagation_style="links")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.with_options(attributes={"user": object()})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    tasks.add_task(send_receipt, "42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.add_task(send_receipt)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


TracedTasksMiddleware(tracing="worker")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskTracing(broker="redis://localhost")  # pyright: ignore[reportArgumentType]
TaskTracing(broker=StubBroker)  # pyright: ignore[reportArgumentType]
TracedBackgroundTask(notify, "42")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TracedBackgroundTask(notify)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
TracedBackgroundTasks(tracing="link")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskTracing(propagation_style="links")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskTracing(span_nam="receipt")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
TaskTracing(span_kind="CONSUMER")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TaskTracing(links=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
TaskTracing().span_name = "receipt"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
