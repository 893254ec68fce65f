import logging
import sys
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI
from loguru import logger
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TaskTracing, TracedBackgroundTasks

if TYPE_CHECKING:
    from loguru import Record

VariablesTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(context_variables=True)
]


def add_trace_id(record: "Record") -> None:
    context = trace.get_current_span().get_span_context()
    record["extra"]["trace_id"] = trace.format_trace_id(context.trace_id)


class Loguru(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        to = logger.opt(exception=record.exc_info)
        to.log(record.levelname, record.getMessage())


logger.configure(
    handlers=[
        {"sink": sys.stderr, "format": "{level} {message} {extra}"}
    ],
    patcher=add_trace_id,
)
logging.basicConfig(handlers=[Loguru()], level=logging.INFO)
trace.set_tracer_provider(TracerProvider())

app = FastAPI()


def charge(order: int) -> None:
    logger.info("charging")
    if order == 0:
        raise ValueError("there is no order 0")


@app.post("/orders/{order}")
def order(order: int, tasks: VariablesTasks) -> None:
    with logger.contextualize(order=order):
        tasks.add_task(charge, order)


@app.post("/plain/{order}")
async def plain(order: int, tasks: TracedBackgroundTasks) -> None:
    with logger.contextualize(order=order):
        tasks.add_task(charge, order)
