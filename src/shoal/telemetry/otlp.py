"""Sends spans to whatever takes OpenTelemetry's protocol, from a thread of its own. Only this module uses the extra `shoal[traces]`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import SpanKind as Kind

from shoal import __version__
from shoal.environment import otlp_protocol
from shoal.errors import ConfigError
from shoal.observed.trace_span import SpanKind, TraceSpan
from shoal.trace_context import TraceContext

log = structlog.get_logger()

MOST_WAITING = 20_000
"""Spans that may wait to be sent; further ones are dropped."""
_GRACE = 5.0
"""Seconds that they have when the head ends."""
_PATH = "/v1/traces"


class OtlpExport:
    def __init__(self, where: str) -> None:
        """where: see ApiSettings.traces. Nothing is sent yet. Raises ConfigError."""
        faults = _Faults()
        self._exporter = _Watched(_exporter(where), where, faults)
        self._batches = BatchSpanProcessor(self._exporter, max_queue_size=MOST_WAITING)
        self._resource = Resource({"service.name": "shoal", "service.version": __version__}).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope("shoal", __version__)

    def send(self, spans: Sequence[TraceSpan]) -> None:
        """In batches, later; from any thread. Does not wait: what finds no room is dropped."""
        if self._exporter.accepts(len(spans)):
            for span in spans:
                self._batches.on_end(readable(span, self._resource, self._scope))

    def close(self) -> None:
        """Sends what waits, within a few seconds and if somebody takes it."""
        if self._exporter.failing:
            self._exporter.shutdown()
        ending = threading.Thread(target=self._batches.shutdown, daemon=True)
        ending.start()
        ending.join(_GRACE)
        self._exporter.shutdown()


def _exporter(where: str) -> SpanExporter:
    """Headers, certificates, compression and timeouts are those of the standard variables, which both exporters read."""
    if where == "env":
        if (protocol := otlp_protocol()) not in ("grpc", "http/protobuf"):
            raise ConfigError(f"OTEL_EXPORTER_OTLP_PROTOCOL is grpc or http/protobuf, not '{protocol}'")
        return GrpcExporter() if protocol == "grpc" else HttpExporter()
    parts = urlsplit(where)
    if parts.scheme.startswith("grpc"):
        return GrpcExporter(f"{'https' if parts.scheme == 'grpcs' else 'http'}://{parts.netloc}", insecure=parts.scheme == "grpc")
    return HttpExporter(where if parts.path.endswith(_PATH) else where.rstrip("/") + _PATH)


class _Faults(logging.Handler):
    """Keeps what OpenTelemetry's packages log to themselves, line after line while a receiver is away."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.latest = ""
        logger = logging.getLogger("opentelemetry")
        logger.handlers, logger.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        self.latest = self.latest or record.getMessage()


class _Watched(SpanExporter):
    """Tells once that spans cannot be sent, and once that they can again."""

    def __init__(self, inner: SpanExporter, where: str, faults: _Faults) -> None:
        self._inner, self._where, self._faults = inner, where, faults
        self._lock = threading.Lock()
        self._waiting = self._lost = 0
        self._ended = self._full = False
        self.failing = False

    def accepts(self, count: int) -> bool:
        with self._lock:
            full = self._waiting + count > MOST_WAITING
            self._waiting += 0 if full else count
            self._lost += count if full else 0
            news, self._full = full and not self._full, full
        if news and not self.failing:
            log.warning("spans of requests come faster than they can be sent, and are dropped; lower --trace-sample", waiting=self._waiting)
        return not full

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE if self._ended else self._inner.export(spans)
        with self._lock:
            self._waiting -= len(spans)
            self._lost += len(spans) if result is SpanExportResult.FAILURE else 0
        if self._ended:
            return result
        if result is SpanExportResult.FAILURE and not self.failing:
            log.warning("spans of requests cannot be sent, and are dropped until they can", to=self._where, reason=self._faults.latest)
        elif result is SpanExportResult.SUCCESS and self.failing:
            log.info("spans of requests are sent again", to=self._where, lost=self._lost)
            self._lost = 0
        self.failing, self._faults.latest = result is SpanExportResult.FAILURE, ""
        return result

    def shutdown(self) -> None:
        if not self._ended:
            self._ended = True
            self._inner.shutdown()


def readable(span: TraceSpan, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """A span as OpenTelemetry has it."""
    own = _context(span.context)
    parent = SpanContext(own.trace_id, int(span.parent, 16), span.kind is SpanKind.SERVER, own.trace_flags) if span.parent else None
    return ReadableSpan(
        span.name,
        own,
        parent,
        resource,
        span.attributes,
        links=[Link(_context(link)) for link in span.links],
        kind=Kind.SERVER if span.kind is SpanKind.SERVER else Kind.INTERNAL,
        status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
        start_time=round(span.began * 1e9),
        end_time=round(span.ended * 1e9),
        instrumentation_scope=scope,
    )


def _context(context: TraceContext) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(int(context.trace, 16), int(context.span, 16), False, flags, state)
