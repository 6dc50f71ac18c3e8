"""Blocks are held, idle or free, and none is ever lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.scheduler.blocks import BlockPool, chain


def test_a_new_pool_is_all_free():
    pool = BlockPool(3)
    assert (pool.available, pool.used) == (3, 0)
    assert sorted(pool.allocate() for _ in range(3)) == [0, 1, 2]
    assert (pool.available, pool.used) == (0, 3)


def test_a_block_is_free_when_its_last_holder_lets_go():
    pool = BlockPool(1)
    block = pool.allocate()
    pool.share(block)
    pool.release(block)
    assert pool.available == 0
    pool.release(block)
    assert pool.available == 1


def test_a_named_block_is_found_while_held_and_while_idle():
    pool, name = BlockPool(2), chain(b"", [1, 2])
    block = pool.allocate()
    pool.name(block, name)
    assert pool.find(name) == block
    pool.release(block)
    assert pool.find(name) == block
    assert pool.available == 2


def test_an_idle_block_that_is_shared_is_held_again():
    pool, name = BlockPool(1), chain(b"", [1])
    block = pool.allocate()
    pool.name(block, name)
    pool.release(block)
    pool.share(block)
    assert pool.available == 0
    pool.check([[block]])


def test_free_blocks_go_before_findable_ones():
    pool = BlockPool(2)
    kept = pool.allocate()
    pool.name(kept, chain(b"", [1]))
    pool.release(kept)
    assert pool.allocate() != kept


def test_the_idle_block_used_least_recently_goes_first():
    pool, names = BlockPool(2), [chain(b"", [i]) for i in range(2)]
    blocks = [pool.allocate(), pool.allocate()]
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    pool.release(blocks[1])
    pool.release(blocks[0])
    assert pool.allocate() == blocks[1]
    assert pool.find(names[1]) is None
    assert pool.find(names[0]) == blocks[0]


def test_the_first_block_of_a_name_keeps_it():
    pool, name = BlockPool(2), chain(b"", [7])
    first, second = pool.allocate(), pool.allocate()
    pool.name(first, name)
    pool.name(second, name)
    assert pool.find(name) == first
    pool.release(second)
    pool.check([[first]])


def test_a_name_covers_all_tokens_before():
    assert chain(chain(b"", [1, 2]), [3, 4]) != chain(chain(b"", [2, 1]), [3, 4])
    assert chain(b"", [1, 2]) == chain(b"", [1, 2])
    assert chain(b"", [1, 2]) != chain(b"", [1])


def test_check_sees_a_lost_block():
    pool = BlockPool(2)
    block = pool.allocate()
    with pytest.raises(AssertionError, match="holders"):
        pool.check([])
    pool.check([[block]])


@given(st.integers(1, 6), st.lists(st.tuples(st.sampled_from(["allocate", "share", "release", "name"]), st.integers(0, 99)), max_size=60))
def test_every_block_is_accounted_for(size: int, events: list[tuple[str, int]]):
    pool, held, named = BlockPool(size), [], 0
    for what, pick in events:
        if what == "allocate" and pool.available:
            held.append(pool.allocate())
        elif held and what == "share":
            pool.share(held[pick % len(held)])
            held.append(held[pick % len(held)])
        elif held and what == "release":
            pool.release(held.pop(pick % len(held)))
        elif held and what == "name":
            named += 1
            pool.name(held[pick % len(held)], chain(b"", [pick % 5]))
        pool.check([held])
        assert pool.used == len(set(held))
