from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    ConsoleLogRecordExporter,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)

from traced_tasks import TracedBackgroundTasks


def show_span(span: ReadableSpan) -> str:
    events = [event.name for event in span.events]
    return f"span {span.name}, events {events}\n"


def show_log(record: ReadableLogRecord) -> str:
    attributes = record.log_record.attributes or {}
    message = attributes["exception.message"]
    return f"log {record.log_record.event_name}, {message!r}\n"


spans = ConsoleSpanExporter(formatter=show_span)
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(tracer_provider)

logs = ConsoleLogRecordExporter(formatter=show_log)
logger_provider = LoggerProvider()
logger_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
set_logger_provider(logger_provider)

app = FastAPI(telemetry={"tracing": False, "logs": False})  # (1)!


def charge(card: str) -> None:
    raise ValueError(f"card {card} was declined")


@app.post("/charge")
async def charge_later(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(charge, "4242")
