"""Which replicas have computed which prefixes, as far as can be told from what was sent to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from shoal.serving.balancing.inquiry import BlockName


class PrefixIndex:
    """Chains of KV blocks, by their names, and who holds each.

    A name stands for a block and all before it. So a holder's chains form a tree, and it holds all ancestors of what it holds: they
    are used whenever their descendants are. What it gives away first is therefore always a leaf, and only leaves have an order. To
    record a chain costs as much as it has blocks that are new, and to find the longest known beginning of one costs log(its length).
    Neither depends on how many holders there are. Holders are numbers: Python's garbage collector then has no interest in the index.
    """

    def __init__(self) -> None:
        self._holders: dict[BlockName, dict[int, int]] = {}
        """Of each block: how many blocks that continue it the holder has."""
        self._leaves: dict[int, OrderedDict[BlockName, tuple[Sequence[BlockName], int]]] = {}
        """Blocks that nothing continues, least recently used first: a chain and the place of the block in it."""
        self._held: dict[int, int] = {}

    def held(self, holder: int) -> int:
        """Blocks."""
        return self._held.get(holder, 0)

    def find(self, chain: Sequence[BlockName]) -> tuple[int, Collection[int]]:
        """How many of its first blocks somebody holds, and who."""
        known, low, high = self._holders, 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if chain[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return (low, known[chain[low - 1]]) if low else (0, ())

    def holders(self, block: BlockName) -> Collection[int]:
        return self._holders.get(block, ())

    def depth(self, holder: int, chain: Sequence[BlockName]) -> int:
        """How many of its first blocks this one holds."""
        known, low, high = self._holders, 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if holder in known.get(chain[middle - 1], ()):
                low = middle
            else:
                high = middle - 1
        return low

    def record(self, holder: int, chain: Sequence[BlockName], bound: int) -> int:
        """The holder uses the chain; what it held, least recently used first, goes until it holds at most `bound` blocks.

        Returns how many of the chain's blocks it held before.
        """
        if len(chain) > bound:
            chain = chain[:bound]
        chain = tuple(chain)
        found = self.depth(holder, chain)
        if not chain:
            return 0
        leaves = self._leaves.setdefault(holder, OrderedDict())
        if found == len(chain):
            if chain[-1] in leaves:
                leaves.move_to_end(chain[-1])
            return found
        known = self._holders
        if found:
            known[chain[found - 1]][holder] += 1
            leaves.pop(chain[found - 1], None)
        for name in chain[found:]:
            there = known.get(name)
            if there is None:
                known[name] = {holder: 1}
            else:
                there[holder] = 1
        known[chain[-1]][holder] = 0
        leaves[chain[-1]] = (chain, len(chain) - 1)
        held = self._held.get(holder, 0) + len(chain) - found
        self._held[holder] = held if held <= bound else self._evict(holder, held, bound)
        return found

    def forget(self, holder: int) -> None:
        """It holds nothing any more."""
        held = self._held.pop(holder, 0)
        if held:
            self._evict(holder, held, 0)
        self._leaves.pop(holder, None)

    def _evict(self, holder: int, held: int, bound: int) -> int:
        """Returns how many it still holds."""
        known, leaves = self._holders, self._leaves[holder]
        while held > bound:
            _, (chain, at) = leaves.popitem(last=False)
            while True:
                name = chain[at]
                there = known[name]
                del there[holder]
                if not there:
                    del known[name]
                held -= 1
                at -= 1
                if at < 0:
                    break
                there = known[chain[at]]
                there[holder] -= 1
                if there[holder]:
                    break
                if held <= bound:  # it was used last when its last descendant was, which has just gone
                    leaves[chain[at]] = (chain, at)
                    leaves.move_to_end(chain[at], last=False)
                    break
        return held
