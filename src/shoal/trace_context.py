"""Which trace a request belongs to, as W3C Trace Context writes it (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextvars import ContextVar

import msgspec

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}"
_MEMBER = re.compile(rf"({_KEY})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_MEMBERS, _STATE = 32, 512
"""Most members and characters of a tracestate; a longer one is dropped."""
_SAMPLED = 1


class TraceContext(msgspec.Struct, frozen=True, array_like=True):
    """A span, as others refer to it. trace, span: 32 and 16 hexadecimal digits. state: what other systems put into `tracestate`."""

    trace: str
    span: str
    sampled: bool
    state: str = ""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.span}-{int(self.sampled):02x}"

    def below(self) -> TraceContext:
        """A new span of the same trace."""
        return msgspec.structs.replace(self, span=new_span())


TRACE: ContextVar[TraceContext | None] = ContextVar("trace", default=None)
"""The span that the code which runs now belongs to: log lines name it."""


def new_span() -> str:
    return secrets.token_hex(8)


def received(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """What the `traceparent` and `tracestate` headers of a request say; None if there is none, more than one, or an invalid one."""
    found = _PARENT.fullmatch(parents[0].strip(" \t")) if len(parents) == 1 else None
    if found is None or (found[1] == "00" and found[5] is not None):  # later versions may add to it
        return None
    return TraceContext(found[2], found[3], bool(int(found[4], 16) & _SAMPLED), _state(",".join(states)))


def _state(text: str) -> str:
    """The tracestate in its canonical form; '' if it is invalid."""
    members = [member.strip(" \t") for member in text.split(",")] if len(text) <= 2 * _STATE else []
    members = [member for member in members if member]
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    state = ",".join(members)
    return state if len(keys) == len(members) <= _MEMBERS and len(state) <= _STATE else ""


def begun(parent: TraceContext | None, share: float) -> TraceContext:
    """A new span below `parent`, which decides whether it is sampled; without one, that share of new traces is."""
    if parent is not None:
        return parent.below()
    trace = f"{secrets.randbits(128) or 1:032x}"
    # As OpenTelemetry's TraceIdRatioBased: other systems that sample by the same share choose the same traces.
    return TraceContext(trace, new_span(), int(trace[16:], 16) < share * 2**64)
