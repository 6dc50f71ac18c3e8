"""A receiver of traces, built on the stubs of OpenTelemetry's protocol: over HTTP, and over gRPC."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.support.cluster import until
from tests.support.threaded import served_by


@dataclass(frozen=True)
class Received:
    """A span, with ids in hexadecimal digits and moments in seconds."""

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    began: float
    ended: float
    attributes: dict[str, Any]
    links: tuple[str, ...]
    """The traces."""
    status: int
    reason: str
    state: str


@dataclass
class Receiver:
    """headers: of the requests, in lower case. resources: what is said of the sender."""

    where: str = ""
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    resources: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    spans: list[Received] = field(default_factory=list[Received])

    def take(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        for of_resource in request.resource_spans:
            self.resources.append(attributes(of_resource.resource.attributes))
            for of_scope in of_resource.scope_spans:
                assert of_scope.scope.name == "shoal"
                for span in of_scope.spans:
                    self.spans.append(
                        Received(
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.name,
                            span.kind,
                            span.start_time_unix_nano / 1e9,
                            span.end_time_unix_nano / 1e9,
                            attributes(span.attributes),
                            tuple(link.trace_id.hex() for link in span.links),
                            span.status.code,
                            span.status.message,
                            span.trace_state,
                        )
                    )

    def of(self, trace: str) -> list[Received]:
        return [span for span in self.spans if span.trace == trace]

    def until_whole(self, trace: str, *names: str) -> Tree:
        """Waits for the spans of those names in a trace."""
        until(lambda: {*names} <= {span.name for span in self.of(trace)}, lambda: f"{names} among {[s.name for s in self.of(trace)]}")
        return Tree(self.of(trace))


class Tree:
    """The spans of one trace."""

    def __init__(self, spans: list[Received]) -> None:
        self.spans = spans

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> Received:
        (found,) = self.named(name)
        return found

    def below(self, parent: Received) -> list[Received]:
        return sorted((span for span in self.spans if span.parent == parent.id), key=lambda span: span.began)


def attributes(pairs: Any) -> dict[str, Any]:
    def value(of: AnyValue) -> Any:
        kind = of.WhichOneof("value")
        return [value(item) for item in of.array_value.values] if kind == "array_value" else getattr(of, str(kind))

    known: list[KeyValue] = list(pairs)
    assert len({pair.key for pair in known}) == len(known)
    return {pair.key: value(pair.value) for pair in known}


@contextmanager
def http_receiver(port: int = 0) -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            raw = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
            right = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if right:
                received.take(ExportTraceServiceRequest.FromString(raw), {name.lower(): value for name, value in self.headers.items()})
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if right else 400)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with served_by(Handler, port) as address:
        received.where = address
        yield received


class _Service(TraceServiceServicer):
    def __init__(self, received: Receiver) -> None:
        self._received, self._lock = received, threading.Lock()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._lock:
            self._received.take(request, {str(name): str(value) for name, value in context.invocation_metadata() or ()})
        return ExportTraceServiceResponse()


@contextmanager
def grpc_receiver() -> Iterator[Receiver]:
    received, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(_Service(received), server)
    received.where = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield received
    finally:
        server.stop(None).wait()
