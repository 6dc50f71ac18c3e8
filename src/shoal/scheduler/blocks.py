"""KV blocks: which sequences hold them, and which full ones can be found again by their tokens.

A block is free, held (by one or more sequences) or idle: no sequence holds it, but it can still be found. Free blocks are allocated
first, then idle ones, least recently used first. An id means the same tokens on every stage.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from shoal.request import BlockId

Digest = bytes


def chain(previous: Digest, tokens: Sequence[int]) -> Digest:
    """The name of a full block: a hash of its tokens and of all tokens before them (Kwon et al., 2023, section 4.4)."""
    return hashlib.blake2b(previous + array("i", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    def __init__(self, blocks: int) -> None:
        self.size = blocks
        self.evicted = 0
        """Idle blocks that were given to somebody else."""
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._name: dict[int, Digest] = {}
        self._named: dict[Digest, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        return self.size - self.available

    def allocate(self) -> BlockId:
        """Only call it when `available` is positive."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._named[self._name.pop(block)]
            self.evicted += 1
        self._holders[block] = 1
        return BlockId(block)

    def share(self, block: BlockId) -> None:
        """Adds a holder to a block that is held or idle."""
        self._idle.pop(block, None)
        self._holders[block] += 1

    def release(self, block: BlockId) -> None:
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._name:
            self._idle[block] = None
        else:
            self._free.append(block)

    def name(self, block: BlockId, digest: Digest) -> None:
        """Makes a full, computed block findable. If two blocks get the same name, the first keeps it."""
        if digest not in self._named and block not in self._name:
            self._named[digest] = block
            self._name[block] = digest

    def find(self, digest: Digest) -> BlockId | None:
        block = self._named.get(digest)
        return None if block is None else BlockId(block)

    def forget_idle(self) -> None:
        """Makes idle blocks unfindable and frees them: their contents are gone."""
        for block in self._idle:
            del self._named[self._name.pop(block)]
            self._free.append(block)
        self._idle.clear()

    def check(self, held: Sequence[Sequence[BlockId]]) -> None:
        """Asserts that every block is accounted for, given the tables of all sequences."""
        counts = [0] * self.size
        for table in held:
            for block in table:
                counts[block] += 1
        assert counts == self._holders, "holders do not match the tables"
        free, idle = set(self._free), set(self._idle)
        assert len(free) == len(self._free) and not free & idle, "a block is free twice"
        assert {block for block, count in enumerate(counts) if not count} == free | idle, "a block is lost"
        assert {b: d for d, b in self._named.items()} == self._name and idle <= set(self._name), "names do not match"
