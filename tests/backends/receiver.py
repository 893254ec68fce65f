"""A small receiver of OTLP, over HTTP and over gRPC."""

import gzip
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Received:
    """What has arrived so far."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.services: set[str] = set()
        self.spans: list[Span] = []
        self.task_spans: list[Span] = []
        self.metrics: dict[str, Metric] = {}

    def __getitem__(self, name: str) -> Span:
        """The span with this name, which need not have arrived yet."""
        self.wait(lambda: any(span.name == name for span in self.spans))
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait for something to arrive."""
        deadline = monotonic() + 20
        while not until():
            assert monotonic() < deadline, "it did not arrive"
            sleep(0.01)

    def take_traces(self, request: ExportTraceServiceRequest, _: Any = None) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            self.services.add(str(attributes(resource.resource.attributes)["service.name"]))
            for scope in resource.scope_spans:
                if scope.scope.name == "traced_tasks":
                    self.task_spans += scope.spans
                self.spans += scope.spans
        return ExportTraceServiceResponse()

    def take_metrics(self, request: ExportMetricsServiceRequest, _: Any = None) -> ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            self.services.add(str(attributes(resource.resource.attributes)["service.name"]))
            for scope in resource.scope_metrics:
                if scope.scope.name == "traced_tasks":
                    self.metrics |= {metric.name: metric for metric in scope.metrics}
        return ExportMetricsServiceResponse()


def attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    """The attributes of a span, a data point or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


@contextmanager
def receive_http() -> Iterator[Received]:
    """Receive at an endpoint such as `http://127.0.0.1:4318`."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            answer: ExportTraceServiceResponse | ExportMetricsServiceResponse
            if self.path == "/v1/traces":
                answer = received.take_traces(ExportTraceServiceRequest.FromString(body))
            else:
                assert self.path == "/v1/metrics"
                answer = received.take_metrics(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(answer.SerializeToString())

        def log_request(self, code: object = None, size: object = None) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        received.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def receive_grpc() -> Iterator[Received]:
    """Receive at an endpoint such as `http://127.0.0.1:4317`."""
    received = Received()

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        Export = staticmethod(received.take_traces)

    class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
        Export = staticmethod(received.take_metrics)

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
        received.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield received
        finally:
            server.stop(None).wait()
