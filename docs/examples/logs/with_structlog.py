import logging
from typing import Annotated

import structlog
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from structlog.contextvars import bind_contextvars, merge_contextvars
from structlog.stdlib import (
    ExtraAdder,
    LoggerFactory,
    ProcessorFormatter,
    add_log_level,
)
from structlog.typing import EventDict, Processor

from traced_tasks import TaskTracing, TracedBackgroundTasks

VariablesTasks = Annotated[
    TracedBackgroundTasks, TaskTracing(context_variables=True)
]


def add_trace_id(_: object, __: str, event: EventDict) -> EventDict:
    context = trace.get_current_span().get_span_context()
    event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


for_all: list[Processor] = [
    add_log_level,
    merge_contextvars,
    add_trace_id,
]
handler = logging.StreamHandler()
handler.setFormatter(
    ProcessorFormatter(
        foreign_pre_chain=[*for_all, ExtraAdder()],
        processors=[
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
)
logging.basicConfig(handlers=[handler], level=logging.INFO)
structlog.configure(
    processors=[*for_all, ProcessorFormatter.wrap_for_formatter],
    logger_factory=LoggerFactory(),
)
trace.set_tracer_provider(TracerProvider())

app = FastAPI()
logger = structlog.get_logger("shop")


def charge(order: int) -> None:
    logger.info("charging")
    if order == 0:
        raise ValueError("there is no order 0")


@app.post("/orders/{order}")
def order(order: int, tasks: VariablesTasks) -> None:
    bind_contextvars(order=order)
    tasks.add_task(charge, order)


@app.post("/plain/{order}")
def plain(order: int, tasks: TracedBackgroundTasks) -> None:
    bind_contextvars(order=order)
    tasks.add_task(charge, order)
