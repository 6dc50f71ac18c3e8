"""A journal gives back what was put into it, within its bounds, and says what it has not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.executor.journal import Journal, JournalLimits
from shoal.native import BLOCK_TOKENS
from shoal.wire import codec
from shoal.wire.frame import WireCodec
from tests.support.descriptors import beneath

HIDDEN, BLOCKS = 64, 8
BLOCK = BLOCK_TOKENS * HIDDEN * 4
PLENTY = BLOCKS * BLOCK
RNG = np.random.default_rng(5)


def rows(count: int) -> np.ndarray:
    scales = np.exp(2 * RNG.standard_normal((count, 1)))
    return (RNG.standard_normal((count, HIDDEN)) * scales).astype(np.float32)


def slots(*at: int) -> np.ndarray:
    return np.array(at, np.int32)


def journal(memory: int = PLENTY, disk: int = 0, encoding: WireCodec = WireCodec.RAW) -> Journal:
    return Journal(JournalLimits(memory, disk, encoding), BLOCKS, HIDDEN)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_raw_rows_come_back_exactly(where: str) -> None:
    kept = journal(PLENTY if where == "memory" else 0, PLENTY if where == "disk" else 0)
    at, x = slots(3, 200, 17, 255), rows(4)
    kept.write(at, x)
    got, known = kept.read(at[::-1])
    assert known.all() and (got == x[::-1]).all()
    kept.close()


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("encoding", list(WireCodec))
def test_rows_come_back_as_the_next_stage_had_them_and_go_out_again_as_they_did(encoding: WireCodec, where: str) -> None:
    kept = journal(**{"memory": 0, "disk": 0, where: PLENTY, "encoding": encoding})
    at, x = np.arange(200, dtype=np.int32), rows(200)
    kept.write(at, x)
    sent = bytes(codec.encode(encoding, x))
    got, known = kept.read(at)
    assert known.all()
    assert (got == codec.decode(encoding, sent, 200, HIDDEN)).all()
    assert bytes(codec.encode(encoding, got)) == sent
    kept.close()


def test_rows_that_were_never_written_are_not_known() -> None:
    kept = journal()
    kept.write(slots(5), rows(1))
    got, known = kept.read(slots(4, 5, 6))
    assert known.tolist() == [False, True, False]
    assert not got[[0, 2]].any()


def test_what_comes_back_is_no_view_of_the_journal() -> None:
    kept, x = journal(), rows(1)
    kept.write(slots(5), x)
    kept.read(slots(5))[0][:] = 0
    assert (kept.read(slots(5))[0] == x).all()


def test_memory_is_bounded_and_what_is_over_goes_to_disk() -> None:
    kept = journal(memory=2 * BLOCK, disk=3 * BLOCK)
    every = np.arange(BLOCKS * BLOCK_TOKENS, dtype=np.int32)
    x = rows(len(every))
    kept.write(every, x)
    got, known = kept.read(every)
    assert np.flatnonzero(~known).tolist() == list(range(5 * BLOCK_TOKENS, 8 * BLOCK_TOKENS))
    assert (got[known] == x[known]).all()
    counters = kept.counters
    assert (counters.kept, counters.spilled, counters.given_up) == (2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS, 3 * BLOCK_TOKENS)
    assert counters.replayed == 5 * BLOCK_TOKENS
    assert kept.bytes_in_memory == 2 * BLOCK
    kept.close()


def test_without_room_nothing_is_kept() -> None:
    kept = journal(memory=BLOCK - 1)
    kept.write(slots(0, 9), rows(2))
    assert not kept.read(slots(0, 9))[1].any()
    assert (kept.counters.given_up, kept.bytes_in_memory) == (2, 0)


def test_the_file_is_gone_with_the_journal_and_nobody_else_sees_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = journal(memory=0, disk=PLENTY)
    assert beneath(tmp_path) == []
    kept.write(slots(0, 9), rows(2))
    assert len(beneath(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    kept.close()
    kept.close()
    assert beneath(tmp_path) == []


def fails(*results: int | OSError) -> Callable[..., int]:
    """os.pwrite with these answers, then as it is."""
    left, real = list(results), os.pwrite

    def pwrite(file: int, data: bytes, at: int) -> int:
        if not left:
            return real(file, data, at)
        answer = left.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return real(file, data[:answer], at)

    return pwrite


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"), 7])
def test_a_full_disk_is_said_once_and_what_is_not_kept_is_not_known(monkeypatch: pytest.MonkeyPatch, trouble: int | OSError) -> None:
    kept = journal(memory=BLOCK, disk=PLENTY)
    far = np.arange(BLOCK_TOKENS, BLOCK_TOKENS + 6, dtype=np.int32)
    x = rows(6)
    kept.write(far[:3], x[:3])
    monkeypatch.setattr("os.pwrite", fails(trouble))
    with structlog.testing.capture_logs() as said:
        kept.write(far[2:5], x[2:5])  # the first of these was there before, and is half written at best
        kept.write(far[5:], x[5:])
    assert [(entry["log_level"], "journal" in entry["event"]) for entry in said] == [("warning", True)]
    got, known = kept.read(far)
    assert known.tolist() == [True, True, False, False, False, False]
    assert (got[:2] == x[:2]).all()
    assert kept.counters.given_up == 4
    kept.write(slots(0), x[:1])
    assert kept.read(slots(0))[1].all(), "what fits in memory is still kept"
    kept.close()


def test_a_directory_that_cannot_be_written_to_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    kept = journal(memory=0, disk=PLENTY)
    with structlog.testing.capture_logs() as said:
        kept.write(slots(0, 1), rows(2))
    assert (len(said), kept.counters.given_up) == (1, 2)


def test_a_file_that_cannot_be_read_is_said_and_its_rows_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = journal(memory=0, disk=PLENTY)
    kept.write(slots(3), rows(1))

    def pread(file: int, count: int, at: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.pread", pread)
    with structlog.testing.capture_logs() as said:
        assert not kept.read(slots(3))[1].any()
    assert said[0]["log_level"] == "warning"
    kept.close()


def test_a_block_is_copied_with_what_is_not_known_of_it() -> None:
    kept = journal(memory=3 * BLOCK, disk=PLENTY)
    x = rows(2)
    kept.write(slots(1, 2), x)
    kept.write(slots(5 * BLOCK_TOKENS + 9), rows(1))
    kept.copy([(0, 5), (5, 6)])  # into what lies on disk, and on from there
    for block in (5, 6):
        got, known = kept.read(block * BLOCK_TOKENS + np.arange(BLOCK_TOKENS, dtype=np.int32))
        assert np.flatnonzero(known).tolist() == [1, 2]
        assert (got[1:3] == x).all()
    kept.close()


@settings(max_examples=40)
@given(
    st.integers(0, 4),
    st.integers(0, 6),
    st.lists(
        st.one_of(
            st.lists(st.integers(0, BLOCKS * BLOCK_TOKENS - 1), min_size=1, max_size=9, unique=True),
            st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, BLOCKS - 1)),
        ),
        max_size=20,
    ),
)
def test_a_journal_is_a_table_with_bounds(memory: int, disk: int, story: list[list[int] | tuple[int, int]]) -> None:
    kept, model = journal(memory * BLOCK, disk * BLOCK), dict[int, np.ndarray]()
    end = min(memory + disk, BLOCKS) * BLOCK_TOKENS
    try:
        for event in story:
            if isinstance(event, tuple):
                kept.copy([event])
                source, target = (block * BLOCK_TOKENS for block in event)
                copied = {target + i: model[source + i] for i in range(BLOCK_TOKENS) if source + i in model}
                model = {at: row for at, row in model.items() if not target <= at < target + BLOCK_TOKENS}
                model |= {at: row for at, row in copied.items() if at < end}
            else:
                x = rows(len(event))
                kept.write(slots(*event), x)
                model |= {at: row for at, row in zip(event, x, strict=True) if at < end}
        got, known = kept.read(np.arange(BLOCKS * BLOCK_TOKENS, dtype=np.int32))
        assert np.flatnonzero(known).tolist() == sorted(model)
        assert all((got[at] == row).all() for at, row in model.items())
    finally:
        kept.close()
