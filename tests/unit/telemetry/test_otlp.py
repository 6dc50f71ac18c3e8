"""Spans on their way out: what a receiver gets, and what becomes of them if there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from structlog.testing import capture_logs

from shoal import __version__
from shoal.errors import ConfigError
from shoal.observed.trace_span import SpanKind, TraceSpan
from shoal.telemetry import otlp
from shoal.telemetry.otlp import OtlpExport
from shoal.telemetry.traces import check_installed, export_to
from shoal.trace_context import TraceContext
from tests.support.cluster import free_port, until
from tests.support.otlp import Receiver, grpc_receiver, http_receiver

pytestmark = pytest.mark.slow

OWN = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True, "a=1,b=2")
OTHER = TraceContext("5" * 32, "6" * 16, True)
SPAN = TraceSpan(
    "POST /x",
    OWN,
    "b7ad6b7169203331",
    1700000000.25,
    1700000000.5,
    SpanKind.SERVER,
    {"text": "ü\n", "true": True, "count": 2**40, "share": 0.5, "names": ["a", "b"], "figures": [0.5, 1.5]},
    [OTHER],
    "why",
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    logger = logging.getLogger("opentelemetry")
    handlers, propagate = logger.handlers, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate


@pytest.mark.parametrize("receiving", [http_receiver, grpc_receiver])
def test_a_receiver_gets_what_was_sent(receiving: Callable[[], AbstractContextManager[Receiver]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10")
    with receiving() as receiver:
        export = export_to(receiver.where)
        export.send([SPAN, TraceSpan("inner", OTHER, "", 1.0, 2.0)])
        until(lambda: len(receiver.spans) == 2)
        export.close()
    first, second = receiver.spans
    assert (first.trace, first.id, first.parent, first.state) == (OWN.trace, OWN.span, SPAN.parent, OWN.state)
    assert (first.name, first.kind, first.status, first.reason, first.links) == ("POST /x", 2, 2, "why", (OTHER.trace,))
    assert (first.began, first.ended) == pytest.approx((SPAN.began, SPAN.ended), abs=1e-6) and first.attributes == SPAN.attributes
    assert (second.name, second.kind, second.parent, second.status, second.links) == ("inner", 1, "", 0, ())
    about = {"service.name": "shoal", "service.version": __version__, "deployment.environment.name": "test"}
    assert receiver.resources[0] == about and receiver.headers[0]["x-token"] == "secret"


@pytest.mark.parametrize(("receiving", "protocol"), [(http_receiver, None), (http_receiver, "http/protobuf"), (grpc_receiver, "grpc")])
def test_the_standard_variables_say_where_to(
    receiving: Callable[[], AbstractContextManager[Receiver]], protocol: str | None, monkeypatch: pytest.MonkeyPatch
):
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.where.replace("grpc://", "http://"))
        if protocol is not None:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        export = export_to("env")
        export.send([SPAN])
        export.close()
        assert len(receiver.spans) == 1


def test_a_protocol_that_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigError, match="grpc or http/protobuf, not 'http/json'"):
        export_to("env")


def test_without_the_extra_there_is_a_line_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    check_installed("http://127.0.0.1:4318")
    monkeypatch.setattr("shoal.telemetry.traces.find_spec", lambda name: None)
    check_installed("")
    with pytest.raises(ConfigError, match=r"pip install 'shoal\[traces\]'"):
        check_installed("env")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_receiver_that_is_away_is_told_of_once_and_so_is_its_return(scheme: str, caplog: pytest.LogCaptureFixture):
    port = free_port()
    with capture_logs() as lines:
        export = OtlpExport(f"{scheme}://127.0.0.1:{port}")
        for count in range(1, 4):
            export.send([SPAN] * 10)
            until(lambda count=count: export._exporter._lost == 10 * count)
        if scheme == "http":
            with http_receiver(port) as receiver:
                until(lambda: (export.send([SPAN]), receiver.spans)[1], every=0.05)
                export.close()
        else:
            export.close()
    told = [(line["log_level"], line["event"]) for line in lines]
    away = ("warning", "spans of requests cannot be sent, and are dropped until they can")
    assert told == [away, ("info", "spans of requests are sent again")][: len(told)] and len(told) == (2 if scheme == "http" else 1)
    assert lines[0]["to"] == f"{scheme}://127.0.0.1:{port}" and lines[0]["reason"]
    assert not caplog.records


def test_spans_that_find_no_room_are_dropped_and_told_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(otlp, "MOST_WAITING", 5)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    with http_receiver() as receiver, capture_logs() as lines:
        export = OtlpExport(receiver.where)
        export.send([SPAN] * 4)
        export.send([SPAN] * 2)
        export.send([SPAN] * 3)
        export.send([])
        export.close()
        assert len(receiver.spans) == 4
    assert [(line["log_level"], line["waiting"]) for line in lines] == [("warning", 4)]


def test_closing_does_not_wait_for_who_is_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setattr(otlp, "_GRACE", 0.1)
    export = OtlpExport(f"http://127.0.0.1:{free_port()}")
    export.send([SPAN])
    export.close()
    until(lambda: not export._batches._batch_processor._worker_thread.is_alive())
