"""Reads under way at once: every one ends once, as it should or with an error that says why."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import CorruptModel, WeightsUnreadable
from shoal.weights.reader import Arrival, Reader
from tests.unit.weights.faulty_source import FaultySource

DATA = bytes(range(256)) * 4


def into(size: int) -> memoryview:
    return memoryview(bytearray(size))


def collect(reader: Reader[int], count: int) -> list[Arrival[int]]:
    ends: list[Arrival[int]] = []
    while len(ends) < count:
        ends += reader.wait()
    return ends


def test_reads_fill_the_memory():
    with Reader[int](2) as reader:
        views = [into(100) for _ in range(5)]
        for ticket, view in enumerate(views):
            reader.submit(FaultySource(DATA), 100 * ticket, view, ticket)
        ends = collect(reader, 5)
    assert sorted(ends) == [(ticket, None) for ticket in range(5)]
    assert [bytes(view) for view in views] == [DATA[100 * i : 100 * i + 100] for i in range(5)]


def test_short_reads_are_continued():
    view = into(700)
    with Reader[int](1) as reader:
        reader.submit(FaultySource(DATA, at_once=64), 3, view, 0)
        assert reader.wait() == [(0, None)]
    assert bytes(view) == DATA[3:703]


def test_the_end_of_the_file_is_an_error():
    with Reader[int](1) as reader:
        reader.submit(FaultySource(DATA), 1000, into(100), 0)
        [(_, error)] = reader.wait()
    assert isinstance(error, WeightsUnreadable)
    assert str(error).startswith("weights: it ends at 1024, where 76 more bytes were expected")


def test_a_disk_that_fails_is_an_error_of_that_read_alone():
    source = FaultySource(DATA, broken=[100])
    with Reader[int](1) as reader:
        for ticket in range(3):
            reader.submit(source, 100 * ticket, into(100), ticket)
        ends = dict(collect(reader, 3))
    assert (ends[0], ends[2]) == (None, None)
    assert str(ends[1]).startswith("weights: 100 bytes at 100 cannot be read: Input/output error")


def test_a_read_that_takes_long_holds_nobody_up():
    source = FaultySource(DATA, held=[0])
    with Reader[int](2) as reader:
        reader.submit(source, 0, into(10), 0)
        for ticket in (1, 2, 3):
            reader.submit(source, 10 * ticket, into(10), ticket)
        assert {end.ticket for end in collect(reader, 3)} == {1, 2, 3}
        assert reader.poll() == []
        assert reader.outstanding == 1
        source.release(0)
        assert reader.wait() == [(0, None)]


def test_nothing_outstanding_is_not_waited_for():
    with Reader[int](1) as reader:
        assert reader.wait() == []
        assert reader.poll() == []


def test_closing_waits_for_reads_under_way_and_gives_up_the_rest():
    source = FaultySource(DATA, held=[0])
    reader = Reader[int](1)
    views = [into(10), into(10)]
    for ticket, view in enumerate(views):
        reader.submit(source, 10 * ticket, view, ticket)
    source.begun[0].wait()
    closing = threading.Thread(target=reader.close)
    closing.start()
    source.release(0)
    closing.join()
    assert [bytes(view) for view in views] == [DATA[:10], bytes(10)]
    assert reader.wait() == [(0, None)]
    assert reader.outstanding == 0
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.submit(source, 0, into(10), 0)


def test_a_reader_reads_something():
    with pytest.raises(ValueError, match="at least one"):
        Reader[int](0)


@pytest.mark.parametrize("fault", [ZeroDivisionError(), CorruptModel("the model", "a matrix cannot be packed"), MemoryError()], ids=repr)
def test_whatever_a_source_raises_keeps_nobody_waiting_and_the_next_read_is_done(fault: Exception):
    class Broken:
        path = Path("weights")

        def read_into(self, offset: int, into: memoryview) -> int:
            raise fault

    with Reader[int](1) as reader:
        for ticket in range(3):
            reader.submit(Broken(), 0, into(10), ticket)
        reader.submit(FaultySource(DATA), 0, into(10), 3)
        ends = dict(collect(reader, 4))
    assert [isinstance(ends[ticket], WeightsUnreadable) for ticket in range(4)] == [True, True, True, False]
    assert str(fault) in str(ends[0])


@given(
    st.lists(st.tuples(st.integers(0, 1100), st.integers(1, 300)), max_size=12),
    st.sets(st.integers(0, 1100), max_size=300),
    st.integers(1, 400),
    st.integers(1, 4),
)
def test_every_read_ends_once_and_never_with_the_wrong_bytes(ranges: list[tuple[int, int]], broken: set[int], at_once: int, depth: int):
    source = FaultySource(DATA, at_once=at_once, broken=sorted(broken))
    views = [into(size) for _, size in ranges]
    with Reader[int](depth) as reader:
        for ticket, (offset, _) in enumerate(ranges):
            reader.submit(source, offset, views[ticket], ticket)
        ends = collect(reader, len(ranges))
    assert sorted(end.ticket for end in ends) == list(range(len(ranges)))
    for ticket, error in ends:
        offset, size = ranges[ticket]
        pieces = range(offset, offset + size, at_once)
        expected = offset + size <= len(DATA) and not broken.intersection(pieces)
        assert (error is None) == expected
        assert error is not None or bytes(views[ticket]) == DATA[offset : offset + size]
