"""An answer as server-sent events, from any position that its reader has reached.

An event's id says how far it is into the answer: the number of tokens of each choice, joined by dots. So the same cut through
the answer always has the same id, however the choices' tokens were interleaved, even after a restart that sampled some of them
anew. For an answer of one choice it is a simple count. After the last token, the usage counts as one more of the last choice,
and [DONE] as another. If an endpoint numbers its events itself, those numbers are the ids. The event of an error has no id, and
nothing follows it.

While a prompt is computed, or a stream waits for a node, there is nothing to send, and clients give up on a silent connection
(Node's fetch after 300 s). So every few seconds a line is sent that no reader takes for an event.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from shoal.errors import InvalidRequest, ShoalError
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.writer import Event, Writer
from shoal.gateway.engine import TakenOver
from shoal.gateway.http.faults import fault

_NUMBER = re.compile(r"[0-9]{1,9}")

Position = list[int]

PING = Event("")
"""Stands for the line that a job's stream sends when there is nothing to say."""


def position(text: str | None, choices: int) -> Position | None:
    """The position in Last-Event-ID; None if it is empty. Raises InvalidRequest."""
    if not text:
        return None
    parts = text.split(".")
    if len(parts) != choices or not all(_NUMBER.fullmatch(part) for part in parts):
        raise InvalidRequest(f"'{text[:64]}' is not the id of an event of this answer", "Last-Event-ID")
    return [int(part) for part in parts]


def _data(event: Event) -> bytes:
    name = f"event: {event.name}\n".encode() if event.name else b""
    data = event.data.encode() if isinstance(event.data, str) else msgspec.json.encode(event.data)
    return name + b"data: " + data + b"\n\n"


def _id(at: Position) -> bytes:
    return b"id: " + ".".join(map(str, at)).encode() + b"\n"


async def told(
    answer: Answer, writer: Writer, after: Position | None = None, patience: float = 0
) -> AsyncGenerator[tuple[Position | None, Event]]:
    """The events after a position, each with its own position. An error is an event too, without a position.

    patience: seconds of silence after which there is a PING; 0: none
    """
    choices = answer.job.choices
    seen = after or [0] * choices
    at, last = list(seen), 0

    def shown(written: Sequence[Event], new: bool) -> list[tuple[Position | None, Event]]:
        """new: whether to keep events that have no number."""
        kept = [e for e in written if (new if e.number is None else after is None or e.number > after[0])]
        return [(at if e.number is None else [e.number], e) for e in kept]

    try:
        for event in shown(writer.opening(), after is None):
            yield event
        async with aclosing(answer.heard(patience)) as pieces:
            async for piece in pieces:
                if piece is None:
                    yield None, PING
                    continue
                if piece.choice == choices - 1:
                    last = piece.upto
                if new := piece.upto > seen[piece.choice]:
                    at[piece.choice] = piece.upto
                for event in shown(writer.piece(piece), new):
                    yield event
        for number, event in enumerate(writer.ending(answer.usage), last + 1):
            if new := number > seen[-1]:
                at[-1] = number
            for one in shown([event], new):
                yield one
    except ShoalError as error:
        for event in writer.failed(fault(error)):
            yield None, event
    except TakenOver:
        return


async def events(answer: Answer, writer: Writer, after: Position | None = None, patience: float = 0) -> AsyncGenerator[bytes]:
    """The events as bytes to send. patience: seconds of silence after which a line is sent; 0: never."""
    async with aclosing(told(answer, writer, after, patience)) as all:
        async for at, event in all:
            if event is PING:
                yield answer.job.ping
                continue
            yield (b"" if at is None else _id(at)) + _data(event)
