"""What is not the public API of another package may be gone tomorrow: each name is taken away, and the tasks run on."""

import subprocess
import sys
import textwrap

PROGRAM = """
    import asyncio, builtins, os, sys
    from typing import Annotated
    from fastapi import Depends, FastAPI
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider, meter_provider = TracerProvider(), MeterProvider([reader])
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(meter_provider)

    # What is imported above is the same for each name, which is taken away in a process of its own.
    for gone in sys.argv[1:]:
        if not os.fork():
            break
        assert os.wait()[1] == 0
    else:
        sys.exit()

    if gone == "the globals":
        trace.get_tracer_provider, metrics.get_meter_provider = lambda: provider, lambda: meter_provider
        del trace._TRACER_PROVIDER, metrics._internal._METER_PROVIDER

    def import_for(name, globals=None, locals=None, fromlist=(), level=0):
        # The other packages still need what is theirs.
        if globals and globals["__name__"].startswith("traced_tasks"):
            if gone in {name, *(f"{name}.{each}" for each in fromlist or ())}:
                refused.append(gone)
                raise ImportError(gone)
        return import_it(name, globals, locals, fromlist, level)

    refused, import_it, builtins.__import__ = [], builtins.__import__, import_for
    from traced_tasks import TaskTracing, TracedBackgroundTasks

    app = FastAPI()

    def fail():
        raise ValueError

    @app.get("/")
    async def handler(tasks: Annotated[TracedBackgroundTasks, Depends(TaskTracing(on_error="continue"))]):
        tasks.add_task(str)
        tasks.add_task(fail)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    async def main():
        try:
            scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
            await app(scope, receive, send)
        except* ValueError:
            pass

    asyncio.run(main())
    print(gone)
    print(*refused)
    print(*[span.name for span in exporter.get_finished_spans() if span.instrumentation_scope.name == "traced_tasks"])
    for resource in reader.get_metrics_data().resource_metrics:
        for metric in [each for scope in resource.scope_metrics for each in scope.metrics]:
            if metric.name == "background_task.duration":
                print(*[point.attributes["code.function.name"] for point in metric.data.data_points])
"""


NEEDED = [
    "fastapi.params.Depends",
    "fastapi.telemetry._api",
    "opentelemetry._logs",
    "opentelemetry.metrics._internal",
    "sniffio",
]
NOT_NEEDED_ANY_LONGER = ["starlette._utils", "fastapi.dependencies.utils", "the globals"]


def test_without_a_name() -> None:
    """Without any one of these names the package is imported all the same, and a task has its span and its metrics."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), *NEEDED, *NOT_NEEDED_ANY_LONGER],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert "Traceback" not in done.stderr
    told = "background_task str background_task fail", "builtins.str __main__.fail"
    assert done.stdout.splitlines() == [
        *(line for name in NEEDED for line in (name, name, *told)),
        *(line for name in NOT_NEEDED_ANY_LONGER for line in (name, "", *told)),
    ]
