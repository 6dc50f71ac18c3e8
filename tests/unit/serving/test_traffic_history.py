"""The history of traffic: minutes are found again, old ones go, and a damaged file is set aside."""

from __future__ import annotations

import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from shoal.errors import CapacityError, ConfigError
from shoal.serving.traffic_history import KEPT, NAME, TrafficHistory

NOW = 29_000_000


def test_minutes_are_found_again_with_those_in_which_nobody_counted(tmp_path: Path) -> None:
    history = TrafficHistory(tmp_path)
    assert history.minutes("a", NOW) == []
    history.add(NOW - 5, {"a": 3, "b": 1})
    history.add(NOW - 4, {"a": 0})
    history.add(NOW - 2, {"a": 7})
    history.close()
    history = TrafficHistory(tmp_path)
    assert history.minutes("a", NOW) == [3, 0, None, 7, None]
    assert history.minutes("b", NOW) == [1, None, None, None, None]
    assert history.minutes("a", NOW - 4) == [3]


def test_counts_of_one_minute_add_up_as_after_a_restart(tmp_path: Path) -> None:
    history = TrafficHistory(tmp_path)
    for count in (3, 4):
        history.add(NOW - 1, {"a": count})
    assert history.minutes("a", NOW) == [7]


def test_what_is_older_than_five_weeks_goes(tmp_path: Path) -> None:
    history = TrafficHistory(tmp_path)
    for minute in (0, 1, KEPT, KEPT + 1):
        history.add(NOW + minute, {"a": 1})
    rows = history._file.connection.execute("SELECT minute FROM minutes ORDER BY minute").fetchall()
    assert [minute - NOW for (minute,) in rows] == [1, KEPT, KEPT + 1]
    assert len(history.minutes("a", NOW + KEPT + 1)) == KEPT


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 9)), max_size=30), st.integers(0, 45))
def test_it_does_what_a_dictionary_would(entries: list[tuple[str, int, int]], until: int) -> None:
    counts: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        history = TrafficHistory(Path(folder))
        for model, minute, count in entries:
            history.add(NOW + minute, {model: count})
            counts[model, minute] = counts.get((model, minute), 0) + count
        for model in "ab":
            first = min((minute for other, minute in counts if other == model and minute < until), default=until)
            assert history.minutes(model, NOW + until) == [counts.get((model, minute)) for minute in range(first, until)]
        history.close()


def filled(folder: Path) -> bytes:
    history = TrafficHistory(folder)
    for minute in range(3000):
        history._file.connection.execute("INSERT INTO minutes VALUES ('a', ?, 1)", (NOW - 3000 + minute,))
    history.close()
    return (folder / NAME).read_bytes()


@pytest.mark.slow
def test_a_file_cut_short_anywhere_is_set_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    assert len(whole) > 5 * 4096
    for number, size in enumerate(range(600, len(whole), 5000), 1):
        (tmp_path / NAME).write_bytes(whole[:size])
        with capture_logs() as lines:
            history = TrafficHistory(tmp_path)
        (line,) = lines
        assert line["event"] == "the history of traffic is damaged; it was set aside, and a new one begins"
        assert (tmp_path / f"{NAME}.damaged-{number}").read_bytes() == whole[:size]
        assert history.minutes("a", NOW) == []
        history.add(NOW - 1, {"a": 2})
        assert history.minutes("a", NOW) == [2]
        history.close()


def test_damage_while_it_is_open_is_told_and_it_begins_anew(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    history = TrafficHistory(tmp_path)
    history._file.connection.execute("PRAGMA shrink_memory")  # forgets what it has read
    (tmp_path / NAME).write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with capture_logs() as lines, pytest.raises(CapacityError, match=NAME):
        history.minutes("a", NOW)
    assert len(lines) == 1
    history.add(NOW - 1, {"a": 2})
    assert history.minutes("a", NOW) == [2]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / NAME)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    with pytest.raises(ConfigError, match="is a database, but no history of traffic; move it away, or choose another --data"):
        TrafficHistory(tmp_path)
    assert not [*tmp_path.glob("*.damaged-*")]


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep the traffic of models in .*choose another --data"):
        TrafficHistory(tmp_path / "file")


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    TrafficHistory(tmp_path / "new").add(NOW, {"a": 1})
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").iterdir()} == {0o600}
