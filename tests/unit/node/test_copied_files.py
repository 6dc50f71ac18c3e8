from __future__ import annotations

import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.control.messages import Append, Copy
from shoal.errors import ConfigError, RemoteProtocolError
from shoal.node import copied_files as copies_module
from shoal.node.changing_databases import ChangingDatabases
from shoal.node.copied_files import CopiedFiles, held
from shoal.node.led_mark import led, mark_led
from shoal.pipeline import log_file, records
from shoal.pipeline.log_file import log_folder
from shoal.pipeline.records import Accepted, Began, Gone, SampledToken, SampledTokens
from shoal.request import Request, RequestId, SamplingParams

LOG = "requests/org/model"


def record(number: int) -> bytes:
    """Of every kind, in turn."""
    answer = f"a{number // 3}"
    if number % 3 == 0:
        request = Request(RequestId(answer), [1, 2], 5, SamplingParams())
        return records.encode(Accepted(answer, number, b"", [request]))
    if number % 3 == 1:
        return records.encode(SampledTokens([SampledToken(number - 1, 0, 7, None, (), None, 0)]))
    return records.encode(Gone(f"a{number // 3 - 1}"))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=3), st.integers(1, 200))
def test_a_copy_says_what_the_log_said_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, count: int, reconnects: list[int], piece: int
) -> None:
    """The connection ends after any record, and the standby follows anew."""
    folder = tmp_path_factory.mktemp("copy")
    copies = CopiedFiles(folder / "state", folder / "data", ())
    whole, connected = records.encode(Began("m")), False
    for number in range(count):
        if not connected or number in reconnects:
            connected = True
            for at in range(0, len(whole), piece):
                copies.apply(Copy(name=LOG, data=whole[at : at + piece], first=at == 0, last=at + piece >= len(whole)))
        whole += record(number)
        copies.apply(Append(name=LOG, data=record(number)))
    copies.close()
    if count:
        assert (folder / "state" / "org%2Fmodel" / "requests").read_bytes() == whole


def test_a_copy_that_was_not_whole_leaves_the_one_before(tmp_path: Path) -> None:
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ())
    copies.apply(Copy(name="requests/m", data=b"first", first=True, last=True))
    copies.apply(Copy(name="requests/m", data=b"sec", first=True))
    copies.close()
    assert (tmp_path / "state" / "m" / "requests").read_bytes() == b"first"


def test_a_copy_that_has_grown_is_written_anew_with_what_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_BOUND", 2000)
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ())
    copies.apply(Copy(name="requests/m", data=records.encode(Began("m")), first=True, last=True))
    for number in range(300):
        copies.apply(Append(name="requests/m", data=record(number)))
    copies.close()
    data = (tmp_path / "state" / "m" / "requests").read_bytes()
    assert len(data) < 4000
    assert [*records.read(data)[0].answers] == ["a99"]


def test_what_no_head_would_send_is_refused(tmp_path: Path) -> None:
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ("keys.sqlite",))
    for message in (
        Append(name="requests/m", data=b"x"),
        Copy(name="requests/m", data=b"x", last=True),
        Copy(name="../keys.sqlite", data=b"x", first=True, last=True),
        Copy(name="other.sqlite", data=b"x", first=True, last=True),
    ):
        with pytest.raises(RemoteProtocolError):
            copies.apply(message)
    copies.apply(Copy(name="requests/../../up", data=b"x", first=True, last=True))
    copies.close()
    assert sorted(path.name for path in tmp_path.rglob("requests")) == ["requests"]
    assert (tmp_path / "state" / "..%2F..%2Fup" / "requests").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "...", "/", "../up", "%", "a"])
def test_no_name_of_a_log_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ())
    copies.apply(Copy(name=f"requests/{name}", data=b"x", first=True, last=True))
    copies.close()
    assert [path.parent.parent for path in tmp_path.rglob("requests")] == [tmp_path / "state"]


def test_each_name_of_a_log_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = ["", ".", "..", "...", "%", "%2E", "%%2E", "a", "a.b"]
    assert len({log_folder(tmp_path, name) for name in names}) == len(names)


def test_nobody_else_may_use_or_read_a_copy(tmp_path: Path) -> None:
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ("keys.sqlite",))
    copies.apply(Copy(name="requests/m", data=b"x", first=True, last=True))
    copies.apply(Copy(name="keys.sqlite", data=b"x", first=True, last=True))
    assert (tmp_path / "state" / "m" / "requests").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data" / "keys.sqlite").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="--state"):
        CopiedFiles(tmp_path / "state", tmp_path / "other", ()).apply(Copy(name="requests/m", data=b"y", first=True, last=True))
    copies.close()


def test_files_in_the_leaders_own_folder_are_left_alone(tmp_path: Path) -> None:
    mark = held(tmp_path / "data")
    assert mark is not None
    copies = CopiedFiles(tmp_path / "state", tmp_path / "data", ("keys.sqlite",))
    copies.apply(Copy(name="keys.sqlite", data=b"x", first=True, last=True))
    copies.close()
    os.close(mark)
    assert not (tmp_path / "data" / "keys.sqlite").exists()


def test_a_folder_says_that_it_holds_a_copy_before_the_first_part_of_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    assert led(state) == 0
    mark_led(state, 7)
    copies = CopiedFiles(state, tmp_path / "data", ())
    assert led(state) == 7
    monkeypatch.setattr(copies_module.LogFile, "replace", lambda self, data: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        copies.apply(Copy(name="requests/m", data=b"x", first=True, last=True))
    assert led(state) is None
    copies.close()


def test_a_mark_that_says_nothing_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "+led").write_bytes(b"?")
    with pytest.raises(ConfigError, match="delete it"):
        led(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--state"):
        mark_led(tmp_path / "file", 1)


def test_several_standbys_look_for_changes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, connect = list[str](), sqlite3.connect

    def slow(path: Path, **flags: Any) -> sqlite3.Connection:
        opened.append(path.name)
        time.sleep(0.1)
        return connect(path, **flags)

    connect(tmp_path / "keys.sqlite").execute("CREATE TABLE t (n)").connection.close()
    monkeypatch.setattr(sqlite3, "connect", slow)
    databases = ChangingDatabases(tmp_path, ("keys.sqlite",))
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: databases.changed({}), range(4))]
    databases.close()
    assert opened == ["keys.sqlite"] and found.count(found[0]) == 4


def test_a_database_is_copied_whole_and_only_when_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    databases = ChangingDatabases(tmp_path / "a", ("keys.sqlite", "models.sqlite"))
    assert databases.changed({}) == {}
    writer = sqlite3.connect(tmp_path / "a" / "keys.sqlite")
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (n)")
    writer.commit()
    known = {name: version for name, (version, _) in databases.changed({}).items()}
    assert [*known] == ["keys.sqlite"] and databases.changed(known) == {}
    writer.execute("INSERT INTO t VALUES (7)")
    writer.commit()
    ((_, data),) = databases.changed(known).values()
    copies = CopiedFiles(tmp_path / "state", tmp_path / "b", ("keys.sqlite",))
    copies.apply(Copy(name="keys.sqlite", data=data, first=True, last=True))
    copies.close()
    copy = sqlite3.connect(tmp_path / "b" / "keys.sqlite")
    assert copy.execute("SELECT n FROM t").fetchall() == [(7,)]
    for connection in (writer, copy):
        connection.close()
    databases.close()
