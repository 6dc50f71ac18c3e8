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
from typing import Any

from shoal.errors import InvalidRequest, ShoalError
from shoal.gateway.answer import Answer, TakenOver, Writer
from shoal.gateway.faults import fault

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


def _data(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _id(at: Position) -> bytes:
    return b"id: " + ".".join(map(str, at)).encode() + b"\n"


async def events(answer: Answer, writer: Writer, after: Position | None = None) -> AsyncGenerator[bytes]:
    """The events after a position. An error is an event too, without an id, and no [DONE] follows it."""
    job = answer.job
    seen = after or [0] * job.choices
    at, offsets, last = list(seen), [0] * job.choices, 0
    try:
        if job.chat and after is None:
            yield _id(at) + _data(writer.opening())
        async with aclosing(answer.read()) as pieces:
            async for piece in pieces:
                offset, offsets[piece.choice] = offsets[piece.choice], offsets[piece.choice] + len(piece.text)
                if piece.choice == job.choices - 1:
                    last = piece.upto
                if piece.upto > seen[piece.choice]:
                    at[piece.choice] = piece.upto
                    yield _id(at) + _data(writer.event(piece, offset))
        endings = [_data(writer.usage(answer.usage))] if job.include_usage else []
        for number, ending in enumerate([*endings, b"data: [DONE]\n\n"], last + 1):
            if number > seen[-1]:
                at[-1] = number
                yield _id(at) + ending
    except ShoalError as error:
        yield _data(fault(error).body)
    except TakenOver:
        return
