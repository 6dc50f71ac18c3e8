"""What is known of a request before a replica has it, and how it ended there."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence

import msgspec

from shoal.scheduler.blocks import Digest, chain

BlockName = Hashable


class Inquiry(msgspec.Struct, frozen=True):
    tokens: int = 0
    """Of the prompt."""
    blocks: Sequence[BlockName] = ()
    """Names of the prompt's full KV blocks, in order, where they are known: see `block_names`."""
    session: str = ""
    """Requests of one session should meet one replica; empty: it is of none."""


class Ending(enum.StrEnum):
    SERVED = "served"
    FAILED = "failed"
    """The replica is at fault: it broke off, could not be reached, or took too long."""
    BUSY = "busy"
    """It refused: it has too much to do."""
    CANCELLED = "cancelled"
    """The client is gone, which says nothing about the replica."""


def block_names(tokens: Sequence[int], block_tokens: int) -> list[Digest]:
    """As the scheduler of a replica names them. The last token is always computed, so that the block which it completes is left out."""
    names: list[Digest] = []
    for at in range(0, (len(tokens) - 1) // block_tokens * block_tokens, block_tokens):
        names.append(chain(names[-1] if names else b"", tokens[at : at + block_tokens]))
    return names
