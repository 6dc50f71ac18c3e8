"""Which replica holds which prefix: as its own cache would have it, with a bound, least recently used first."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from shoal.serving.balancing.prefix_index import PrefixIndex

Chain = tuple[str, ...]


def named(text: str) -> Chain:
    """As the names of blocks: each stands for all before it."""
    return tuple(text[: at + 1] for at in range(len(text)))


chains = st.text("ab", max_size=5).map(named)


class PlainCaches:
    """The same, block by block: whatever is used moves to the end, a chain's last block first."""

    def __init__(self) -> None:
        self.blocks: dict[int, OrderedDict[str, None]] = {}

    def record(self, holder: int, chain: Chain, bound: int) -> int:
        blocks, chain = self.blocks.setdefault(holder, OrderedDict()), chain[:bound]
        found = sum(name in blocks for name in chain)
        for name in reversed(chain):
            blocks[name] = None
            blocks.move_to_end(name)
        while chain and len(blocks) > bound:
            blocks.popitem(last=False)
        return found

    def depth(self, holder: int, chain: Chain) -> int:
        return sum(name in self.blocks.get(holder, ()) for name in chain)


@given(st.lists(st.tuples(st.integers(0, 2), chains), max_size=40), st.integers(1, 8), chains)
def test_holders_have_what_they_used_last_within_the_bound(events: list[tuple[int, Chain]], bound: int, asked: Chain):
    index = PrefixIndex()
    for holder, chain in events:
        before = index.depth(holder, chain[:bound])
        assert index.record(holder, chain, bound) == before
        assert index.held(holder) <= bound
        assert index.depth(holder, chain) == min(len(chain), bound), "what was just used is there"
    depths = {holder: index.depth(holder, asked) for holder in range(3)}
    depth, holders = index.find(asked)
    assert depth == max(depths.values())
    assert set(holders) == ({holder for holder in depths if depths[holder] == depth} if depth else set())


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=40), st.integers(1, 8))
def test_it_evicts_as_a_cache_by_blocks_does(conversations: list[str], bound: int):
    """For chains that go on, as conversations do. One that ends inside another moves nothing here, so none does."""
    index, plain, grown = PrefixIndex(), PlainCaches(), dict[str, str]()
    for number, text in enumerate(conversations):
        grown[text[0]] = grown.get(text[0], text[0]) + chr(ord("c") + number)
        chain = named(grown[text[0]])[: bound - 1]
        if len(chain) < len(grown[text[0]]):
            continue
        assert index.record(0, chain, bound) == plain.record(0, chain, bound)
        assert index.held(0) == len(plain.blocks[0])
        for other in grown.values():
            assert index.depth(0, named(other)) == plain.depth(0, named(other))


@given(st.lists(st.tuples(st.integers(0, 2), chains), max_size=40), st.integers(1, 8))
def test_nothing_is_left_of_what_is_forgotten(events: list[tuple[int, Chain]], bound: int):
    index = PrefixIndex()
    for holder, chain in events:
        index.record(holder, chain, bound)
    for holder in (0, 1):
        index.forget(holder)
        assert index.held(holder) == 0 and all(index.depth(holder, chain) == 0 for _, chain in events)
    assert all(set(index.holders(name)) <= {2} for _, chain in events for name in chain)
    index.forget(2)
    assert len(index) == 0 and not index._leaves


def test_an_evicted_block_is_nobodys():
    index = PrefixIndex()
    index.record(1, named("abc"), 4)
    index.record(1, named("xy"), 4)
    assert index.depth(1, named("abc")) == 2
    depth, holders = index.find(named("abc"))
    assert (depth, set(holders)) == (2, {1})
    index.record(1, named("xyz"), 3)
    assert index.find(named("abc")) == (0, ())


def test_a_chain_that_is_used_again_as_it_is_stays_longer():
    index = PrefixIndex()
    for text in ("ab", "cd", "ab", "ef"):
        index.record(1, named(text), 4)
    assert [index.depth(1, named(text)) for text in ("ab", "cd", "ef")] == [2, 0, 2]
