"""Traces of requests, as a head makes them of its record and sends them on. Its loop only notes which requests are traced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Protocol

import structlog

from shoal.errors import ConfigError
from shoal.observed.requests import RecoverySpan, Timeline
from shoal.observed.trace_span import TraceSpan
from shoal.telemetry.request_spans import interruption_spans, spans_of
from shoal.telemetry.timelines import RECOVERIES, Timelines
from shoal.trace_context import TraceContext, begun

log = structlog.get_logger()


class SpanExport(Protocol):
    def send(self, spans: Sequence[TraceSpan]) -> None:
        """From any thread. Does not wait."""
        ...

    def close(self) -> None:
        """Sends what waits, within a few seconds."""
        ...


def check_installed(where: str) -> None:
    """where: see ApiSettings.traces. Raises ConfigError if traces cannot be sent."""
    if not where:
        return
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.exporter.otlp.proto.grpc")
    except ModuleNotFoundError:  # of a package that they are in
        found = None
    if found is None:
        raise ConfigError("--traces needs OpenTelemetry's packages, which are not installed; pip install 'shoal[traces]'")


def export_to(where: str) -> SpanExport:
    """where: see ApiSettings.traces. Raises ConfigError."""
    check_installed(where)
    from shoal.telemetry.otlp import OtlpExport  # only for heads that send traces: it takes a quarter of a second

    return OtlpExport(where)


class Traces:
    """A listener of timelines."""

    def __init__(self, export: SpanExport, timelines: Timelines) -> None:
        self._export, self._timelines = export, timelines
        self._interruptions: dict[float, TraceContext] = {}
        """By when they began."""
        self._thread = ThreadPoolExecutor(1, "traces")
        timelines.listener = self

    def send(self, spans: Sequence[TraceSpan]) -> None:
        self._export.send(spans)

    def ended(self, answer: str, trace: TraceContext) -> None:
        asyncio.get_running_loop().call_soon(self._take, answer, trace)  # when its last step is recorded, too

    def _take(self, answer: str, trace: TraceContext) -> None:
        if (timeline := self._timelines.timeline(answer)) is not None:
            self._thread.submit(self._make, timeline, trace)

    def _make(self, timeline: Timeline, trace: TraceContext) -> None:
        try:
            self._export.send(spans_of(timeline, trace, self._interruptions.get))
        except Exception as error:
            log.error("the spans of a request could not be made", request=timeline.request.id, exc_info=error)

    def interrupted(self, recovery: RecoverySpan, traces: Sequence[TraceContext]) -> None:
        """Begins a trace of its own for it, which names those of the requests that waited."""
        context = self._interruptions[recovery.at] = begun(None, 1.0)
        for old in [*self._interruptions][:-RECOVERIES]:
            del self._interruptions[old]
        self._export.send(interruption_spans(recovery, context, traces))

    def close(self) -> None:
        """Sends what waits, within a few seconds."""
        self._thread.shutdown()
        self._export.close()
