"""A request as it goes on to other servers: as its client wrote it, but for the name of the model."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from starlette.datastructures import Headers

from shoal.gateway.auth.caller import Caller
from shoal.gateway.http.request_id import chosen_id
from shoal.gateway.upstream.hops import extended
from shoal.gateway.upstream.upstream import Upstream
from shoal.serving.balancing.inquiry import Inquiry
from shoal.trace_context import TRACE

_KEPT = ("accept", "anthropic-version", "anthropic-beta", "user-agent")
"""Headers that go on as they are. Keys and cookies are meant for this server alone."""
_TELLING_USAGE = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose streams say what was used only when they are asked to."""

_STORED = ("previous_response_id", "conversation")
"""Fields that name what a server keeps."""


class Asked:
    """path: of the endpoint here. raw, body: its bytes, and what they say. model: the name under which other servers have the model."""

    def __init__(self, path: str, headers: Headers, raw: bytes, body: Mapping[str, Any], model: str, caller: Caller, own: str) -> None:
        """own: this server's id. Raises Looped, InvalidRequest."""
        self.path, self.model, self.caller = path, model, caller
        self.id = chosen_id(headers.get("x-request-id"))
        self.inquiry = Inquiry()
        self.choices = _choices(path, body)
        """In the answer."""
        self.names_stored = any(body.get(name) for name in _STORED)
        """Whether it is about something that one server may have, and another not."""
        options = body.get("stream_options")
        wanted = cast("Mapping[str, Any]", options).get("include_usage") if isinstance(options, dict) else None
        self.adds_usage = body.get("stream") is True and path in _TELLING_USAGE and wanted is not True
        """Whether its stream is asked to say what was used, though the client did not ask."""
        changes: dict[str, Any] = {} if body.get("model") == model else {"model": model}
        if self.adds_usage:
            changes["stream_options"] = {**(cast("dict[str, Any]", options) if isinstance(options, dict) else {}), "include_usage": True}
        plain = raw.removeprefix(BOM_UTF8)
        self.body = _changed(plain, changes) if changes else plain
        kept = {name: headers[name] for name in _KEPT if name in headers}
        self._headers = {
            **kept,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "Via": extended(headers.getlist("via"), own),
            "X-Priority": caller.priority.name.lower(),
        }

    def headers(self, upstream: Upstream) -> list[tuple[bytes, bytes]]:
        trace = TRACE.get()
        traced = {} if trace is None else {"traceparent": trace.traceparent, **({"tracestate": trace.state} if trace.state else {})}
        all = {**self._headers, **traced, **upstream.credentials(self.path)}
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in all.items()]  # as they came


def _choices(path: str, body: Mapping[str, Any]) -> int:
    n, prompts = body.get("n"), body.get("prompt")
    each = n if type(n) is int and n > 0 else 1
    if path != "/v1/completions" or not isinstance(prompts, list):
        return each
    several = sum(isinstance(prompt, str | list) for prompt in cast("list[Any]", prompts))  # otherwise they are one prompt's token ids
    return each * max(several, 1)


def _changed(raw: bytes, changes: Mapping[str, Any]) -> bytes:
    """The body with other values of some fields; those of the others keep their bytes."""
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, **changes})
