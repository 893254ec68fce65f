import logging

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TracedBackgroundTasks

trace.set_tracer_provider(TracerProvider())


def add_trace_id(record: logging.LogRecord) -> bool:
    context = trace.get_current_span().get_span_context()
    record.trace_id = trace.format_trace_id(context.trace_id)
    record.span_id = trace.format_span_id(context.span_id)
    return True


handler = logging.StreamHandler()
handler.addFilter(add_trace_id)
logging.basicConfig(
    handlers=[handler],
    level=logging.INFO,
    format="%(trace_id)s %(span_id)s %(levelname)s %(message)s",
)
logger = logging.getLogger("shop")

app = FastAPI()


def charge(order: int) -> None:
    logger.info("charging")
    if order == 0:
        raise ValueError("there is no order 0")


@app.post("/orders/{order}")
def order(order: int, tasks: TracedBackgroundTasks) -> None:
    logger.info("ordered")
    tasks.add_task(charge, order)
