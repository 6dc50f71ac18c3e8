"""An answer as server-sent events, from wherever its reader got to.

An event's id says how far the answer is with it: the tokens of each choice, joined by dots. So the same cut through the answer has the
same id whenever it is made, however the choices' tokens came in between each other: after a restart, too, that drew some of them
anew. An answer of one choice simply counts. After the last token the usage counts as one more of the last choice, and [DONE] as another.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from shoal.errors import InvalidRequest, ShoalError
from shoal.gateway.answer import Answer
from shoal.gateway.engine import TakenOver
from shoal.gateway.faults import fault
from shoal.gateway.writer import Event, Writer

_NUMBER = re.compile(r"[0-9]{1,9}")

Position = list[int]


def position(text: str | None, choices: int) -> Position | None:
    """What Last-Event-ID says; None where it says nothing. Raises InvalidRequest."""
    if not text:
        return None
    parts = text.split(".")
    if len(parts) != choices or not all(_NUMBER.fullmatch(part) for part in parts):
        raise InvalidRequest(f"'{text[:64]}' is no id of an event of this answer", "Last-Event-ID")
    return [int(part) for part in parts]


def _data(event: Event) -> bytes:
    name = f"event: {event.name}\n".encode() if event.name else b""
    data = event.data if isinstance(event.data, str) else json.dumps(event.data, ensure_ascii=False, separators=(",", ":"))
    return name + b"data: " + data.encode() + b"\n\n"


def _id(at: Position) -> bytes:
    return b"id: " + ".".join(map(str, at)).encode() + b"\n"


async def events(answer: Answer, writer: Writer, after: Position | None = None) -> AsyncGenerator[bytes]:
    """The events after a position. An error is an event too, without an id, and nothing follows it."""
    choices = answer.job.choices
    seen = after or [0] * choices
    at, last = list(seen), 0
    try:
        if after is None:
            for event in writer.opening():
                yield _id(at) + _data(event)
        async with aclosing(answer.read()) as pieces:
            async for piece in pieces:
                if piece.choice == choices - 1:
                    last = piece.upto
                written = writer.piece(piece)
                if piece.upto > seen[piece.choice]:
                    at[piece.choice] = piece.upto
                    for event in written:
                        yield _id(at) + _data(event)
        for number, event in enumerate(writer.ending(answer.usage), last + 1):
            if number > seen[-1]:
                at[-1] = number
                yield _id(at) + _data(event)
    except ShoalError as error:
        yield _data(Event(fault(error).body))
    except TakenOver:
        return
