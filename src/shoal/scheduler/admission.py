"""Decides which waiting sequence gets a free slot and its first KV blocks, found by name or shared with the request's first choice."""

from __future__ import annotations

from shoal.request import BlockId, Priority
from shoal.scheduler.dynamic_batching import release
from shoal.scheduler.sequence import Sequence
from shoal.scheduler.slots import Slots


class Admission:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def admit(self, step: int, now: float) -> None:
        """Admits the sequences that can enter before step number `step`, first come first. now: seconds."""
        release(self._slots.waiting, self._slots.limits.batching, now)
        passed: list[Sequence] = []
        while (sequence := self._slots.waiting.first) is not None:
            # It waits for others, for its sample, or for the prompt that it forks from; those behind it may enter meanwhile.
            if (
                sequence.held
                or sequence.awaiting
                or ((parent := self._forks_from(sequence)) is not None and parent.computed < parent.prompt_length)
            ):
                self._slots.waiting.remove(sequence)
                passed.append(sequence)
                continue
            if not self._let_in(sequence):
                break
            self._slots.waiting.remove(sequence)
            self._slots.running.append(sequence)
            sequence.entered = step, len(sequence.tokens)
            sequence.standing = Priority(max(sequence.priority - sequence.set_back, Priority.URGENT))
        for sequence in passed:
            self._slots.waiting.put(sequence)

    def _forks_from(self, sequence: Sequence) -> Sequence | None:
        """The sequence whose prompt blocks this one shares, or will share when they are computed."""
        parent = sequence.parent
        return parent if parent is not None and not parent.done and parent.life == 0 else None

    def _let_in(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence its first blocks if a slot is free. Preempts sequences of lower classes if slots or blocks
        are lacking."""
        while True:
            parent = self._forks_from(sequence)
            if len(self._slots.running) < self._slots.limits.slots and (
                self._enter(sequence) if parent is None else self._fork(sequence, parent)
            ):
                return True
            lower = [s for s in self._slots.running if s.standing > sequence.priority]
            if not lower or self._lacking(sequence) > sum(len(s.table) for s in lower):
                return False
            self._slots.preempt(max(lower, key=lambda s: s.rank), sequence)

    def _lacking(self, sequence: Sequence) -> int:
        """About how many blocks have to become free before it can enter. An estimate: found blocks may also be counted as available."""
        needed = (
            2
            if self._forks_from(sequence) is not None
            else self._slots.blocks_for(len(sequence.tokens) + sequence.samples) - len(self._found(sequence))
        )
        return needed - self._slots.pool.available

    def _found(self, sequence: Sequence) -> list[BlockId]:
        """The leading blocks of its tokens that can be found by name."""
        found: list[BlockId] = []
        for digest in self._slots.digests(sequence, sequence.findable // self._slots.limits.block_tokens):
            block = self._slots.pool.find(digest)
            if block is None:
                break
            found.append(block)
        return found

    def _enter(self, sequence: Sequence) -> bool:
        """Takes the blocks that are found by name, if the rest of the known tokens fits too."""
        found = self._found(sequence)
        for block in found:
            self._slots.pool.share(block)
        if (
            self._slots.blocks_for(len(sequence.tokens) + sequence.samples) - len(found) > self._slots.pool.available
            and self._slots.running
        ):
            for block in reversed(found):
                self._slots.pool.release(block)
            return False
        sequence.table = found
        sequence.named = len(found)
        sequence.scheduled = sequence.computed = len(found) * self._slots.limits.block_tokens
        if sequence.life == 0:
            sequence.cached = sequence.scheduled
            self._slots.counters.cached_tokens += sequence.scheduled
        return True

    def _fork(self, sequence: Sequence, parent: Sequence) -> bool:
        """Shares the parent's prompt and copies the block that the child will write into."""
        whole = (parent.prompt_length - 1) // self._slots.limits.block_tokens
        if self._slots.pool.available < 2:
            return False
        for block in parent.table[:whole]:
            self._slots.pool.share(block)
        own = self._slots.pool.allocate()
        self._slots.copies.append((parent.table[whole], own))
        sequence.table = [*parent.table[:whole], own]
        sequence.named = whole
        sequence.scheduled = sequence.computed = parent.prompt_length - 1
        sequence.cached = parent.prompt_length - 1
        sequence.forking = True
        return True
