from typing import Annotated

from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ParentBased,
    TraceIdRatioBased,
)
from opentelemetry.trace import set_tracer_provider

from traced_tasks import TaskTracing, TracedBackgroundTasks

processor = BatchSpanProcessor(OTLPSpanExporter())
requests = TracerProvider(ParentBased(TraceIdRatioBased(0.01)))
requests.add_span_processor(processor)
set_tracer_provider(requests)
reports = TracerProvider(ParentBased(TraceIdRatioBased(0.5)))
reports.add_span_processor(processor)

ReportTasks = Annotated[
    TracedBackgroundTasks,
    TaskTracing(propagation_style="link", tracer_provider=reports),
]
app = FastAPI()


def send_receipt() -> None: ...


def write_report() -> None: ...


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> None:
    tasks.add_task(send_receipt)


@app.post("/reports")
async def report(tasks: ReportTasks) -> None:
    tasks.add_task(write_report)
