from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    ConsoleSpanExporter,
    SimpleSpanProcessor,
)

from traced_tasks import TracedBackgroundTasks

exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name}\n")
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

tracer = trace.get_tracer("shop")
app = FastAPI()


async def notify(user_id: int) -> None:
    with tracer.start_as_current_span("send mail") as span:
        span.set_attribute("shop.user", user_id)


@app.post("/checkout")
async def checkout(tasks: TracedBackgroundTasks) -> dict[str, str]:
    tasks.add_task(notify, user_id=42)
    return {"status": "paid"}
