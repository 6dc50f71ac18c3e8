"""Locks on files: each way of locking holds to the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from shoal import file_lock
from shoal.file_lock import lock_file, locked
from tests.support.elsewhere import Msvcrt


@pytest.fixture(params=["flock", "msvcrt"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "msvcrt":
        monkeypatch.setattr(file_lock, "fcntl", None)
        monkeypatch.setattr(file_lock, "_LOOK", 0.001)
        monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt("msvcrt"))
    return request.param


def test_a_file_that_is_locked_gives_no_second_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one = lock_file(path)
    assert one is not None
    assert lock_file(path) is None
    os.close(one)
    again = lock_file(path)
    assert again is not None
    os.close(again)


def test_one_has_it_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a+b") as one, path.open("a+b") as other:
        assert locked(one.fileno())
        assert not locked(other.fileno())
        one.close()
        assert locked(other.fileno())


def test_what_is_in_the_file_and_where_it_is_read_stay(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"abcdef")
    with path.open("r+b", buffering=0) as file:
        file.seek(2)
        assert locked(file.fileno())
        assert file.read() == b"cdef"
    assert path.read_bytes() == b"abcdef"


def test_somebody_who_waits_gets_it(tmp_path: Path) -> None:
    path, had = tmp_path / "lock", Event()

    def wait() -> None:
        with path.open("a+b") as file:
            assert locked(file.fileno(), wait=True)
            had.set()

    with path.open("a+b") as file:
        assert locked(file.fileno())
        waiting = Thread(target=wait)
        waiting.start()
        assert not had.wait(0.05)
    waiting.join()
    assert had.is_set()


def test_it_ends_with_its_process(tmp_path: Path, way: str) -> None:
    path = tmp_path / "lock"
    script = "from tests.support.elsewhere import impoverish; impoverish(); " if way == "msvcrt" else ""
    script += f"from shoal.file_lock import locked; f = open({str(path)!r}, 'a'); print(locked(f.fileno()), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        streams: Any = process
        assert streams.stdout.readline() == "True\n"
        with path.open("a+b") as file:
            assert not locked(file.fileno())
            process.kill()
            process.wait()
            assert locked(file.fileno())
