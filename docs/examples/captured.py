from fastapi import FastAPI
from opentelemetry import baggage, trace
from opentelemetry.context import attach

from traced_tasks import TracedBackgroundTasks

tracer = trace.get_tracer("shop")
app = FastAPI()


def send_receipt(order_id: int) -> None:
    span = trace.get_current_span()
    span.set_attribute("shop.order", order_id)
    span.set_attribute("shop.tenant", str(baggage.get_baggage("tenant")))


@app.post("/orders/{order_id}")
def order(order_id: int, tasks: TracedBackgroundTasks) -> None:
    attach(baggage.set_baggage("tenant", "acme"))
    with tracer.start_as_current_span("charge card"):
        tasks.add_task(send_receipt, order_id)
