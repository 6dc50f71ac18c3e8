"""Prompts as names of pieces of their text, for replicas whose tokenizer is not known here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from shoal.config import Balancing
from shoal.serving.balancing.inquiry import Inquiry

PIECE = 128
"""Bytes of a piece: about as much text as a KV block of 32 tokens has."""
TOKEN = 4
"""Bytes of text that count as a token."""
MOST = 4096
"""Pieces of a prompt that are named: its first 512 KiB."""
READING = frozenset({Balancing.PREFIX, Balancing.SESSION_HASH})
"""The strategies that look at names of pieces, or at the session."""

_FIELDS = ("tools", "system", "instructions", "prompt", "input", "messages")
"""Of bodies of OpenAI's and Anthropic's APIs, in the order in which templates put them into a prompt."""


def prompt_text(body: Mapping[str, Any]) -> bytes:
    """The prompt in a request's body as one text. A conversation that goes on begins with the text that it had before: each message,
    tool and prompt is written for itself."""
    parts: list[bytes] = []
    for name in _FIELDS:
        value = body.get(name)
        if isinstance(value, str):
            parts.append(value.encode())
        elif isinstance(value, list):
            parts += map(msgspec.json.encode, cast("list[Any]", value))
        elif value is not None:
            parts.append(msgspec.json.encode(value))
    return b"\n".join(parts)


def piece_names(text: bytes) -> list[bytes]:
    """A name for each full piece, which depends on the piece and on all before it."""
    names: list[bytes] = []
    for at in range(0, min(len(text) // PIECE, MOST) * PIECE, PIECE):
        names.append(hashlib.blake2b((names[-1] if names else b"") + text[at : at + PIECE], digest_size=16).digest())
    return names


def inquiry_of(body: Mapping[str, Any]) -> Inquiry:
    """What a balancer is asked for the request with that body."""
    text, session = prompt_text(body), body.get("prompt_cache_key")
    return Inquiry(len(text) // TOKEN, piece_names(text), session if isinstance(session, str) else "")
