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
    Neither depends on how many holders there are. Holders are numbers, so that Python's garbage collector has little to do here.
    """

    def __init__(self) -> None:
        self._known: dict[BlockName, int | dict[int, int]] = {}
        """Who holds a block, and how many blocks that continue it. Nearly always one holder has one: then it is just the holder."""
        self._leaves: dict[int, OrderedDict[BlockName, tuple[Sequence[BlockName], int]]] = {}
        """Blocks that nothing continues, least recently used first: a chain and the place of the block in it."""
        self._held: dict[int, int] = {}

    def __len__(self) -> int:
        """Blocks that somebody holds."""
        return len(self._known)

    def held(self, holder: int) -> int:
        """Blocks."""
        return self._held.get(holder, 0)

    def find(self, chain: Sequence[BlockName]) -> tuple[int, Collection[int]]:
        """How many of its first blocks somebody holds, and who."""
        known, low, high = self._known, 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if chain[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return (low, self.holders(chain[low - 1])) if low else (0, ())

    def holders(self, block: BlockName) -> Collection[int]:
        there = self._known.get(block, ())
        return (there,) if isinstance(there, int) else there

    def depth(self, holder: int, chain: Sequence[BlockName]) -> int:
        """How many of its first blocks this one holds."""
        known, low, high = self._known, 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            there = known.get(chain[middle - 1], ())
            if there == holder if isinstance(there, int) else holder in there:
                low = middle
            else:
                high = middle - 1
        return low

    def record(self, holder: int, chain: Sequence[BlockName], bound: int) -> int:
        """The holder uses the chain; what it held, least recently used first, goes until it holds at most `bound` blocks.

        Returns how many of the chain's blocks it held before.
        """
        chain = tuple(chain[:bound])
        if not chain:
            return 0
        found = self.depth(holder, chain)
        leaves = self._leaves.setdefault(holder, OrderedDict())
        if found == len(chain):
            if chain[-1] in leaves:
                leaves.move_to_end(chain[-1])
            return found
        if found:
            leaves.pop(chain[found - 1], None)
            self._continue(holder, chain[found - 1], 1)
        known = self._known
        for name in chain[found:-1]:
            there = known.get(name)
            if there is None:
                known[name] = holder
            elif isinstance(there, int):
                known[name] = {there: 1, holder: 1}
            else:
                there[holder] = 1
        there = known.setdefault(chain[-1], {})
        if isinstance(there, int):
            there = known[chain[-1]] = {there: 1}
        there[holder] = 0
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
        known, leaves = self._known, self._leaves[holder]
        while held > bound:
            _, (chain, at) = leaves.popitem(last=False)
            self._drop(holder, chain[at])
            held, at = held - 1, at - 1
            while at >= 0 and held > bound and known[chain[at]] == holder:  # what it alone held, and one block continued
                del known[chain[at]]
                held, at = held - 1, at - 1
            if at >= 0 and self._continue(holder, chain[at], -1) == 0:
                leaves[chain[at]] = (chain, at)
                leaves.move_to_end(chain[at], last=False)  # it was used last when its last descendant was, which has just gone
        return held

    def _continue(self, holder: int, name: BlockName, more: int) -> int:
        """So many more blocks of the holder continue this one. Returns how many do."""
        there = self._known[name]
        if isinstance(there, int):
            there = self._known[name] = {there: 1}
        there[holder] += more
        if there[holder] == 1 and len(there) == 1:
            self._known[name] = holder
            return 1
        return there[holder]

    def _drop(self, holder: int, name: BlockName) -> None:
        there = self._known[name]
        if isinstance(there, int) or len(there) == 1:
            del self._known[name]
        else:
            del there[holder]
