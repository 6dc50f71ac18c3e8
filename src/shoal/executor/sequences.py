"""The block tables of a stage's sequences, and a step's plan as arrays."""

from __future__ import annotations

import numpy as np

from shoal.errors import RemoteProtocolError
from shoal.executor.base import StageBatch
from shoal.native import BLOCK_TOKENS
from shoal.scheduler.plan import StepPlan


class Sequences:
    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._tables: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, plan: StepPlan) -> StageBatch | None:
        """Applies a plan's differences; None if it has no rows. Raises RemoteProtocolError for an invalid plan."""
        for sequence in (*plan.closed, *plan.dropped):
            self._tables.pop(sequence, None)
        chunks = plan.chunks
        if not chunks:
            return None
        starts = np.zeros(len(chunks) + 1, np.int32)
        positions = np.empty(len(chunks), np.int32)
        tokens: list[int] = []
        picked: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        if len({chunk.sequence for chunk in chunks}) != len(chunks):
            raise RemoteProtocolError(f"step {plan.step} names a sequence twice")
        for source, target in plan.copies:
            if not (0 <= source < self._blocks and 0 <= target < self._blocks):
                raise RemoteProtocolError(f"step {plan.step} copies a KV block outside the pool of {self._blocks}")
        for i, chunk in enumerate(chunks):
            if any(not 0 <= token < 2**31 for token in chunk.tokens):
                raise RemoteProtocolError(f"step {plan.step} has an impossible token")
            table = self._tables.setdefault(chunk.sequence, [])
            if chunk.blocks:
                table.extend(chunk.blocks)
                if not all(0 <= block < self._blocks for block in chunk.blocks):
                    raise RemoteProtocolError(f"step {plan.step} names a KV block outside the pool of {self._blocks}")
            if not chunk.tokens or chunk.position < 0 or chunk.position + len(chunk.tokens) > len(table) * BLOCK_TOKENS:
                raise RemoteProtocolError(f"step {plan.step} has tokens outside the blocks of sequence {chunk.sequence}")
            tokens.extend(chunk.tokens)
            for position in range(chunk.position, chunk.position + len(chunk.tokens)):
                slots.append(table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
            starts[i + 1], positions[i] = len(tokens), chunk.position
            tables.append(table)
            if chunk.drafts and not (chunk.sample and 0 < chunk.drafts < len(chunk.tokens)):
                raise RemoteProtocolError(f"step {plan.step} has drafts of sequence {chunk.sequence} that follow nothing")
            if chunk.sample:
                picked.extend(range(len(tokens) - 1 - chunk.drafts, len(tokens)))
        width = max(len(table) for table in tables)
        padded = np.zeros((len(tables), width), np.int32)
        for i, table in enumerate(tables):
            padded[i, : len(table)] = table
        return StageBatch(
            starts,
            positions,
            padded,
            np.array(tokens, np.int32),
            np.array(picked, np.int32),
            tuple(chunk.sequence for chunk in chunks if chunk.sample for _ in range(1 + chunk.drafts)),
            np.array(slots, np.int32),
        )
