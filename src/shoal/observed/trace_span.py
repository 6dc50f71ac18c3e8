"""A span of a trace: something that took time for a request."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from shoal.trace_context import TraceContext

Attribute = str | bool | int | float | Sequence[str | float]


class SpanKind(enum.StrEnum):
    INTERNAL = "internal"
    SERVER = "server"
    """It answers a request from outside; its parent, if it has one, is the client's."""


class TraceSpan(msgspec.Struct, frozen=True):
    """parent: its span's id; '': it is the first of its trace. links: spans of other traces. error: why it failed; None: it did not."""

    name: str
    context: TraceContext
    parent: str
    began: float
    ended: float
    kind: SpanKind = SpanKind.INTERNAL
    attributes: dict[str, Attribute] = {}
    links: list[TraceContext] = []
    error: str | None = None
