"""Server-sent events of another server: cut apart, looked at, and otherwise left as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec

_LARGEST = 16 << 20
"""Bytes of an event."""
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE = re.compile(rb"\r\n|\n|\r")
_FIELD = re.compile(rb"(?:[A-Za-z][\w-]*)?(?::.*)?", re.DOTALL)
"""A line of an event: a field with its value, a field alone, or a comment. Fields that are not known are ignored."""
_DONE = b"[DONE]"


class Garbled(Exception):
    """What came is no event of such a stream."""


@dataclass(frozen=True)
class StreamEvent:
    """raw: its bytes, with the empty line that ends it. data: its object; None: it has no data, or is the end of the stream. done: it is
    [DONE]."""

    raw: bytes
    data: dict[str, Any] | None = None
    done: bool = False


class EventStream:
    """Bytes as they come → events. No event is held back when it is complete."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[StreamEvent]:
        """Raises Garbled when it comes to what is no event."""
        since = max(len(self._rest) - 3, 0)
        self._rest += piece
        begin = 0
        while (end := _END.search(self._rest, max(begin, since))) is not None:
            raw = bytes(self._rest[begin : end.end()])
            begin = end.end()
            yield _event(raw)
        del self._rest[:begin]
        if len(self._rest) > _LARGEST:
            raise Garbled(f"an event has more than {_LARGEST} bytes")

    @property
    def unfinished(self) -> bool:
        """Whether the stream has ended within an event."""
        return bool(self._rest.strip())


def _event(raw: bytes) -> StreamEvent:
    lines = _LINE.split(raw)
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    if not data.strip():
        if not all(_FIELD.fullmatch(line) for line in lines):
            raise Garbled("what it sent is no stream of events")
        return StreamEvent(raw)
    if data.strip() == _DONE:
        return StreamEvent(raw, done=True)
    try:
        read = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"an event is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise Garbled("an event is not a JSON object")
    return StreamEvent(raw, cast("dict[str, Any]", read))
