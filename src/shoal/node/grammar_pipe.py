"""The messages between a stage and its grammar process. A node imports this, and not the grammar compiler."""

from __future__ import annotations

from typing import BinaryIO

import msgspec


class GrammarUpdate(msgspec.Struct, array_like=True):
    """opened: sequence, grammar, tokens, width. sampled: sequence, token. closed: sequences."""

    opened: list[tuple[int, str, list[int], int]] = []
    sampled: list[tuple[int, int]] = []
    closed: list[int] = []


class Mask(msgspec.Struct, array_like=True):
    """What may come next in a sequence after `at` tokens, or why nothing may."""

    sequence: int
    at: int
    tokens: bytes = b""
    """int32: the tokens that may come, or (`but`) all tokens except these."""
    but: bool = False
    fault: str = ""
    ours: bool = False


def read(stream: BinaryIO) -> bytes | None:
    """Reads a message; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    body = stream.read(int.from_bytes(head, "little"))
    return body if len(body) == int.from_bytes(head, "little") else None


def write(stream: BinaryIO, body: bytes) -> None:
    stream.write(len(body).to_bytes(4, "little") + body)
    stream.flush()
