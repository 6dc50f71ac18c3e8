"""Which bytes of a file are here: whatever happens, each is asked for until it has come, and by one at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.models.ranges import Ranges


def bytes_of(pieces: list[tuple[int, int]]) -> set[int]:
    return {i for start, end in pieces for i in range(start, end)}


def drained(ranges: Ranges) -> list[range]:
    out: list[range] = []
    while (piece := ranges.take()) is not None:
        out.append(piece)
    return out


@given(st.integers(1, 100), st.integers(1, 30), st.data())
def test_every_byte_comes_once(size: int, grain: int, data: st.DataObject):
    ranges, flying, came = Ranges(size, grain=grain), list[range](), list[int]()
    failures = 20
    while not ranges.complete:
        moves = [m for m, able in (("take", True), ("finish", flying), ("give back", flying and failures)) if able]
        move = data.draw(st.sampled_from(moves)) if len(flying) < 5 else "finish"
        if move == "take":
            piece = ranges.take()
            if piece is None:
                move = "finish"
            else:
                assert 0 < len(piece) <= grain
                assert not any(set(piece) & set(other) for other in flying)
                flying.append(piece)
        if move == "finish":
            piece = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
            ranges.finish(piece)
            came += piece
        elif move == "give back":
            failures -= 1
            ranges.give_back(flying.pop())
        assert bytes_of(ranges.done) == set(came)
        assert ranges.taken == set(flying)
        assert ranges.bytes_done == len(came)
    assert sorted(came) == list(range(size))
    assert ranges.done == [(0, size)]


@given(st.integers(1, 100), st.integers(1, 30), st.data())
def test_what_was_here_is_not_asked_for_again(size: int, grain: int, data: st.DataObject):
    first = Ranges(size, grain=grain)
    for piece in drained(first):
        first.finish(piece) if data.draw(st.booleans()) else first.give_back(piece)
    again = Ranges(size, first.done, grain=data.draw(st.integers(1, 30)))
    assert again.done == first.done
    pieces = [(p.start, p.stop) for p in drained(again)]
    assert bytes_of(pieces) | bytes_of(first.done) == set(range(size))
    assert not bytes_of(pieces) & bytes_of(first.done)


def test_ranges_that_touch_become_one():
    ranges = Ranges(10, [(6, 8), (0, 2)])
    assert ranges.done == [(0, 2), (6, 8)]
    (gap, rest) = drained(ranges)
    ranges.finish(gap)
    assert ranges.done == [(0, 8)]
    ranges.finish(rest)
    assert ranges.complete


@pytest.mark.parametrize("done", [[(0, 11)], [(-1, 3)], [(3, 3)], [(5, 2)], [(0, 4), (3, 6)], [(0, 4), (0, 4)]])
def test_what_cannot_have_been(done: list[tuple[int, int]]):
    with pytest.raises(ValueError, match=r"range|already"):
        Ranges(10, done)
