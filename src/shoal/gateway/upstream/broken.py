"""How a stream that broke off ends, in the form of its API: never silently, and never as a success."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.errors import UpstreamFailed
from shoal.gateway.http.dialect import ANTHROPIC
from shoal.gateway.http.faults import Fault, fault
from shoal.gateway.http.request_span import refused
from shoal.gateway.upstream.meter import Meter


def broken(path: str, error: UpstreamFailed, meter: Meter) -> bytes:
    """The last events of a stream of that endpoint."""
    what = fault(error)
    refused(what)
    if path == "/v1/messages":
        return _event(ANTHROPIC.body(what), "error")
    if path == "/v1/responses":
        return b"".join(_event(data, data["type"]) for data in _response(what, meter))
    return _event(what.body)


def _response(what: Fault, meter: Meter) -> list[dict[str, Any]]:
    number = meter.last.get("sequence_number")
    at = number + 1 if isinstance(number, int) else 0
    error: dict[str, Any] = {"type": "error", "code": what.code, "message": what.message, "param": what.param, "sequence_number": at}
    if not meter.response:
        return [error]
    response = {**meter.response, "status": "failed", "error": {"code": "server_error", "message": what.message}}
    return [error, {"type": "response.failed", "response": response, "sequence_number": at + 1}]


def _event(data: dict[str, Any], name: str = "") -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + msgspec.json.encode(data) + b"\n\n"
