"""Kept answers on the disk: found again, never more of them than was allowed, and nothing lost without a word."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from shoal.errors import CapacityError, ConfigError
from shoal.serving.response_store import NAME, OVERHEAD, AnswerStore

MANY = 1 << 20
KEYS = [bytes([i]) * 32 for i in range(8)]
A, B, C, D = KEYS[:4]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def opened(folder: Path, bound: int = MANY, lifetime: float = 100.0, clock: Clock | None = None) -> AnswerStore:
    return AnswerStore(folder, bound, lifetime, clock or Clock())


def kept(store: AnswerStore, *keys: bytes) -> list[bytes]:
    """Those of the keys that have an answer; looking at them is no use of them."""
    found = {row[0] for row in store._file.connection.execute("SELECT key FROM answers")}
    return [key for key in keys if key in found]


def got(store: AnswerStore, key: bytes, oldest: float | None = None) -> bytes | None:
    found = store.get(key, store.lifetime if oldest is None else oldest)
    return None if found is None else found.answer


# What is kept


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert got(store, A) is None
    store.put(A, b"one")
    assert (got(store, A), got(store, B)) == (b"one", None)
    store.close()
    assert got(opened(tmp_path), A) == b"one"


def test_the_latest_answer_counts(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(A, b"one")
    assert store.put(A, b"other").taken == len(b"other") + OVERHEAD
    assert got(store, A) == b"other"


def test_an_answer_grows_old(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    store.put(A, b"one")
    clock.now += 40
    found = store.get(A, 1e9)
    assert found is not None
    assert found.age == 40
    assert (got(store, A, 40), got(store, A, 39)) == (b"one", None)
    clock.now += 60
    assert got(store, A) == b"one"
    clock.now += 0.5
    assert got(store, A) is None
    assert store.put(B, b"two").taken == len(b"two") + OVERHEAD
    assert kept(store, A, B) == [B]


def test_one_that_is_too_old_for_one_client_is_there_for_another(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    store.put(A, b"one")
    clock.now += 5
    assert (got(store, A, 1), got(store, A, 10)) == (None, b"one")


def test_a_clock_that_was_set_back_makes_nothing_older(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    store.put(A, b"one")
    clock.now -= 500
    found = store.get(A, 0)
    assert found is not None
    assert found.age == 0


# How much


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    store = opened(tmp_path, 3 * (OVERHEAD + 10))
    for key in (A, B, C):
        store.put(key, b"0123456789")
    assert got(store, A) is not None
    room = store.put(D, b"0123456789")
    assert (room.taken, room.evicted) == (3 * (OVERHEAD + 10), 1)
    assert kept(store, A, B, C, D) == [A, C, D]


def test_one_larger_than_all_the_room_pushes_nothing_out(tmp_path: Path) -> None:
    store = opened(tmp_path, 2 * OVERHEAD)
    store.put(A, b"one")
    room = store.put(B, bytes(3 * OVERHEAD))
    assert (room.taken, room.evicted) == (OVERHEAD + 3, 0)
    assert kept(store, A, B) == [A]


def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    store = opened(tmp_path, MANY)
    for key in KEYS:
        store.put(key, bytes(50_000))
    store.close()
    before = (tmp_path / NAME).stat().st_size
    store = opened(tmp_path, 110_000)
    assert (store.begun.evicted, kept(store, *KEYS)) == (6, KEYS[-2:])
    assert store.begun.taken == 2 * (50_000 + OVERHEAD)
    store.close()
    assert (tmp_path / NAME).stat().st_size < before / 2


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 3 * OVERHEAD)),
    st.tuples(st.just("get"), st.sampled_from(KEYS), st.integers(0, 60)),
    st.tuples(st.just("wait"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("open again"), st.just(0), st.just(0)),
)


@given(st.lists(OPERATIONS, max_size=40), st.integers(0, 8 * OVERHEAD))
@settings(max_examples=60)
def test_it_does_what_a_dictionary_would(operations: list[tuple[str, bytes | int, int]], bound: int) -> None:
    lifetime, clock = 50.0, Clock()
    model: dict[bytes, tuple[bytes, float]] = {}  # the least recently used first
    with tempfile.TemporaryDirectory() as folder:
        store = opened(Path(folder), bound, lifetime, clock)
        for number, (what, key, size) in enumerate(operations):
            if isinstance(key, int):
                clock.now += key
                if what == "open again":
                    store.close()
                    store = opened(Path(folder), bound, lifetime, clock)
                    model = {key: one for key, one in model.items() if clock.now - one[1] <= lifetime}
            elif what == "get":
                found, right = store.get(key, min(lifetime, size)), model.get(key)
                if right is None or clock.now - right[1] > min(lifetime, size):
                    assert found is None
                else:
                    assert found is not None
                    assert (found.answer, found.age) == (right[0], clock.now - right[1])
                    model[key] = model.pop(key)
            else:
                answer = bytes([number]) * size
                room = store.put(key, answer)
                model = {other: one for other, one in model.items() if other != key and clock.now - one[1] <= lifetime}
                if len(answer) + OVERHEAD <= bound:
                    model[key] = (answer, clock.now)
                evicted = 0
                while sum(len(one) + OVERHEAD for one, _ in model.values()) > bound:
                    del model[next(iter(model))]
                    evicted += 1
                assert (room.taken, room.evicted) == (sum(len(one) + OVERHEAD for one, _ in model.values()), evicted)
                assert room.taken <= bound
        rows = store._file.connection.execute("SELECT key, answer FROM answers ORDER BY used").fetchall()
        assert rows == [(key, answer) for key, (answer, _) in model.items()]
        store.close()


# The file


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "new")
    store.put(A, b"one")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()} == {0o600}


def spoil(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + 4096] = os.urandom(4096)
    file.write_bytes(content)


@pytest.mark.parametrize("content", [b"no database, but something else " * 100, None])
def test_a_damaged_file_is_set_aside_with_a_warning(tmp_path: Path, content: bytes | None) -> None:
    store = opened(tmp_path)
    store.put(A, b"one")
    store.close()
    if content is None:
        spoil(tmp_path / NAME, 0)
    else:
        (tmp_path / NAME).write_bytes(content)
    was = (tmp_path / NAME).read_bytes()
    with capture_logs() as lines:
        store = opened(tmp_path)
    (line,) = lines
    assert (line["log_level"], line["file"]) == ("warning", str(tmp_path / f"{NAME}.damaged-1"))
    assert "set aside" in line["event"]
    assert (tmp_path / f"{NAME}.damaged-1").read_bytes() == was
    assert got(store, A) is None
    store.put(A, b"two")
    store.close()
    (tmp_path / NAME).write_bytes(b"again " * 1000)
    with capture_logs():
        opened(tmp_path).close()
    assert (tmp_path / f"{NAME}.damaged-2").exists()
    assert (tmp_path / f"{NAME}.damaged-1").read_bytes() == was


def test_damage_that_shows_later_ends_no_process(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for key in KEYS:
        store.put(key, bytes(20_000))
    store.close()
    pages = (tmp_path / NAME).stat().st_size // 4096
    content = bytearray((tmp_path / NAME).read_bytes())
    content[4096:] = b"\xff" * 4096 * (pages - 1)  # all but the list of tables
    store = opened(tmp_path)
    other = opened(tmp_path)
    (tmp_path / NAME).write_bytes(content)
    with capture_logs() as lines, pytest.raises(CapacityError, match=NAME):
        store.get(A, 1e9)
    assert [line["log_level"] for line in lines] == ["warning"]
    store.put(A, b"new")
    assert got(store, A) == b"new"
    with capture_logs() as lines, pytest.raises(CapacityError):
        other.get(B, 1e9)
    assert lines == []  # the file was set aside before
    assert got(other, A) == b"new"
    assert [*tmp_path.glob("*.damaged-*")] == [tmp_path / f"{NAME}.damaged-1"]


def test_an_answer_that_is_not_what_was_written_is_not_given(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.put(A, b"one")
    store._file.connection.execute("UPDATE answers SET answer = x'00'")
    with capture_logs() as lines:
        assert got(store, A) is None
    assert [line["log_level"] for line in lines] == ["warning"]
    assert kept(store, A) == []


def database(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    database(tmp_path / NAME, "CREATE TABLE mine (a)", "INSERT INTO mine VALUES (1)")
    was = (tmp_path / NAME).read_bytes()
    with pytest.raises(ConfigError, match="no response cache; move it away"):
        opened(tmp_path)
    assert (tmp_path / NAME).read_bytes() == was


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    database(tmp_path / NAME, "PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match=r"another version of shoal \(9, this is 1\); delete it"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep answers in .*choose another --data"):
        opened(tmp_path / "file")


def test_a_store_that_another_process_holds_on_to_is_told(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store._file.connection.execute("PRAGMA busy_timeout = 10")
    holder = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CapacityError, match="locked"):
        store.put(A, b"one")
    holder.execute("COMMIT")
    holder.close()
    store.put(A, b"one")
    assert got(store, A) == b"one"
    assert [*tmp_path.glob("*.damaged-*")] == []


WRITER = """
import sys
from pathlib import Path
from shoal.serving.response_store import AnswerStore
store = AnswerStore(Path(sys.argv[1]), 200_000, 1e6)
for i in range(150):
    store.put(f"{sys.argv[2]}-{i}".encode(), sys.argv[2].encode() * 1000)
    room = store.put(b"both", b"the same")
    assert room.taken <= 200_000, room
    assert store.get(b"both", 1e6).answer == b"the same"
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """They also make the file at once."""
    writers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    store = AnswerStore(tmp_path, 200_000, 1e6)
    rows = store._file.connection.execute("SELECT key, answer FROM answers").fetchall()
    assert len(rows) > 100
    assert all(answer == (b"the same" if key == b"both" else key[:1] * 1000) for key, answer in rows)
    assert store.begun.taken == sum(len(answer) + OVERHEAD for _, answer in rows)
    assert [*tmp_path.glob("*.damaged-*")] == []
