"""The slots of running sequences, and the KV blocks that they hold.

If slots or blocks are lacking, the youngest sequence of the lowest class is preempted. Its tokens are known and are recomputed later.
"""

from __future__ import annotations

from shoal.request import BlockId, SequenceId
from shoal.scheduler.blocks import BlockPool, chain
from shoal.scheduler.limits import Counters, Limits
from shoal.scheduler.queue import WaitingQueue
from shoal.scheduler.sequence import Sequence

_TURN = 32
"""Tokens that a sequence samples in one turn."""


class Slots:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.pool = BlockPool(limits.blocks)
        self.waiting = WaitingQueue(limits.ageing)
        self.running: list[Sequence] = []
        """Oldest first."""
        self.short: list[Sequence] = []
        """Those that found no block in the last step, all taken by younger ones. They get one before the next step."""
        self.dropped: list[int] = []
        """Sequences whose tables start anew with the next step."""
        self.copies: list[tuple[BlockId, BlockId]] = []
        """Blocks (from, to) to copy before the next step."""

    def renew(self, limits: Limits) -> None:
        """Adopts new limits when all blocks are lost and their number may differ: preempts every running sequence."""
        self.limits = limits
        for sequence in reversed(self.running[:]):
            self.preempt(sequence)
        self.dropped = []
        self.pool = BlockPool(limits.blocks)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def provide(self, sequence: Sequence, count: int, taken: set[SequenceId]) -> int:
        """Gives the sequence blocks for its next `count` tokens, preempting the youngest of the lowest class for them, but none of those
        taken. Returns how many tokens can run. If none can, the sequence has given way, or has the next step's blocks to come before those
        that were taken: see `short`."""
        while True:
            # After a delayed sample the last token runs again, which needs no new place.
            room = self._room(sequence) + sequence.unsampled
            if room >= count:
                return count
            if self.pool.available:
                sequence.table.append(self.pool.allocate())
                continue
            victim = max((s for s in self.running if s.id not in taken), key=lambda s: s.rank, default=None)
            # Nobody else may be preempted: it runs what fits, or gives its blocks to the others.
            if victim is None or victim is sequence:
                if room > 0:
                    return min(room, count)
                if any(s.rank > sequence.rank for s in self.running):
                    self.short.append(sequence)  # younger ones took the blocks for this step
                elif victim is sequence and len(self.running) > 1:
                    self.preempt(sequence, min(self.running, key=lambda s: s.rank))
                return 0
            self.preempt(victim, sequence)

    def spare(self, sequence: Sequence, count: int) -> int:
        """How many more tokens than are scheduled have a place, up to `count`. It gets blocks for them, but none that another one may need
        for its next token."""
        room = self._room(sequence)
        while room < count and self.pool.available > len(self.running):
            sequence.table.append(self.pool.allocate())
            room = self._room(sequence)
        return min(room, count)

    def _room(self, sequence: Sequence) -> int:
        """Tokens that have a place after those that are scheduled."""
        return len(sequence.table) * self.limits.block_tokens - sequence.scheduled

    def provide_short(self) -> None:
        """Gives each that was short of a block the place for a token."""
        short, self.short = self.short, []
        for sequence in short:
            if sequence in self.running:
                self.provide(sequence, 1, set())

    def preempt(self, sequence: Sequence, favoured: Sequence | None = None) -> None:
        """Frees a sequence's blocks, for the sake of another; its tokens are known and will be recomputed."""
        if len(sequence.tokens) - sequence.entered[1] >= _TURN:
            sequence.set_back = 0
        elif favoured is not None and favoured.standing < sequence.standing:
            sequence.set_back += 1
        self.running.remove(sequence)
        self.give_up(sequence)
        if sequence.told:
            self.dropped.append(sequence.id)
        sequence.scheduled = sequence.computed = sequence.told = sequence.named = 0
        sequence.life += 1
        sequence.forking = sequence.unsampled = False
        self.waiting.put(sequence)
        self.counters.preemptions += 1

    def give_up(self, sequence: Sequence) -> None:
        # Last block first: other sequences share the start of a prompt, so it should be the last to be given away.
        for block in reversed(sequence.table):
            self.pool.release(block)
        sequence.table = []

    def digests(self, sequence: Sequence, count: int) -> list[bytes]:
        size = self.limits.block_tokens
        while len(sequence.digests) < count:
            at = len(sequence.digests)
            previous = sequence.digests[-1] if at else b""
            sequence.digests.append(chain(previous, sequence.tokens[at * size : (at + 1) * size]))
        return sequence.digests[:count]

    def name_blocks(self, sequence: Sequence) -> None:
        if sequence.degraded or not self.limits.prefixes:
            return  # others must not find what is not the model's
        full = sequence.computed // self.limits.block_tokens
        if full > sequence.named:
            digests = self.digests(sequence, full)
            for i in range(sequence.named, full):
                self.pool.name(sequence.table[i], digests[i])
            sequence.named = full
