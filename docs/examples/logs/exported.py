# pyright: reportMissingTypeStubs=false

import logging

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    ConsoleLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.trace import TracerProvider

from traced_tasks import TracedBackgroundTasks


def show(record: ReadableLogRecord) -> str:
    log = record.log_record
    trace_id = trace.format_trace_id(log.trace_id or 0)
    return (
        f"{trace_id} {log.severity_text} {log.body!s}\n{log.attributes}\n"
    )


trace.set_tracer_provider(TracerProvider())
logger_provider = LoggerProvider()
logger_provider.add_log_record_processor(
    SimpleLogRecordProcessor(ConsoleLogRecordExporter(formatter=show))
)
set_logger_provider(logger_provider)
LoggingInstrumentor().instrument()  # after set_logger_provider
logging.getLogger().setLevel(logging.INFO)

app = FastAPI(telemetry={"logs": False})
logger = logging.getLogger("shop")


def charge(order: int) -> None:
    logger.info("charging", extra={"shop.order": order})
    if order == 0:
        raise ValueError("there is no order 0")


@app.post("/orders/{order}")
def order(order: int, tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, order)
