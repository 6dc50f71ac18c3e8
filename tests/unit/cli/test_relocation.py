"""What was kept in the cache gets to where it is kept now: whole, once, whoever else moves it and wherever a process is killed at it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.cli.relocation import move_in
from shoal.errors import ConfigError

KEY = b"-----BEGIN PRIVATE KEY-----\n"
OLD = {"keys/authority/authority.pem": KEY, "keys/10.0.0.1-7420.pem": KEY, "api/keys.sqlite": b"SQLite", "api/files/f-1": bytes(70_000)}
PLAYED = {"heads/8000/log": b"requests", "chat/history.jsonl": b'"hello"\n'}


class Home:
    """A user's home in which an earlier version ran."""

    def __init__(self, cache: Path, data: Path, state: Path) -> None:
        self.cache, self.data, self.state = cache / "shoal", data / "shoal", state / "shoal"
        self.told: list[str] = []

    def fill(self) -> None:
        for name, content in {**OLD, **PLAYED, "models/smollm2/model.gguf": b"weights"}.items():
            path = self.cache / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)
        for path in self.cache.rglob("*"):
            if path.is_dir():
                path.chmod(0o700)

    def move(self) -> None:
        move_in(self.told.append)

    def check(self) -> None:
        """Everything is in its place, in one, and nobody else's to read."""
        for place, files in ((self.data, OLD), (self.state, PLAYED)):
            for name, content in files.items():
                assert (place / name).read_bytes() == content
                assert (place / name).stat().st_mode & 0o777 == 0o600
            for folder in (place, *(path for path in place.rglob("*") if path.is_dir())):
                assert folder.stat().st_mode & 0o777 == 0o700, folder
            assert {path.name for path in place.iterdir()} == {name.split("/")[0] for name in files}
        assert [path.name for path in self.cache.iterdir()] == ["models"]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than pytest's."""
    there = Path("/dev/shm")
    if not there.is_dir() or there.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("this machine has one file system")
    folder = Path(tempfile.mkdtemp(dir=there))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["one file system", "two"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for variable in ("SHOAL_HOME", "SHOAL_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    new = tmp_path if request.param == "one file system" else request.getfixturevalue("elsewhere")
    made = Home(tmp_path / "cache", new / "data", new / "state")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(new / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(new / "state"))
    return made


def test_what_is_to_be_kept_is_moved_once_and_told_in_one_line(home: Home) -> None:
    home.fill()
    home.move()
    home.check()
    (said,) = home.told
    assert str(home.cache) in said and f"keys, api to {home.data}" in said and f"heads, chat to {home.state}" in said
    home.move()
    assert len(home.told) == 1


def test_who_has_nothing_gets_no_folders(home: Home) -> None:
    home.move()
    assert not home.data.exists() and not home.state.exists() and home.told == []


def test_an_empty_folder_in_the_new_place_gives_way_and_one_with_something_stays(home: Home) -> None:
    home.fill()
    (home.data / "keys").mkdir(mode=0o700, parents=True)
    (home.state / "chat").mkdir(mode=0o700, parents=True)
    (home.state / "chat" / "history.jsonl").write_bytes(b"newer")
    home.move()
    assert (home.data / "keys" / "authority" / "authority.pem").read_bytes() == KEY
    assert (home.state / "chat" / "history.jsonl").read_bytes() == b"newer"
    assert (home.cache / "chat" / "history.jsonl").read_bytes() == PLAYED["chat/history.jsonl"]
    assert any("delete the one that is not wanted" in said and str(home.cache / "chat") in said for said in home.told)


def test_a_link_still_leads_to_where_it_led(home: Home, tmp_path: Path) -> None:
    home.fill()
    shutil.move(home.cache / "keys", tmp_path / "elsewhere")
    (home.cache / "keys").symlink_to("../../elsewhere")
    home.move()
    assert (home.data / "keys" / "authority" / "authority.pem").read_bytes() == KEY
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("variable", ["SHOAL_HOME", "SHOAL_CACHE"])
def test_nothing_is_moved_for_who_named_a_folder(home: Home, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.fill()
    monkeypatch.setenv(variable, str(home.cache if variable == "SHOAL_CACHE" else tmp_path / "mine"))
    home.move()
    assert (home.cache / "keys").exists() and not home.data.exists() and home.told == []


def test_a_volume_is_not_emptied_unasked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.fill()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == home.cache)
    with pytest.raises(ConfigError, match=f"SHOAL_HOME={home.cache}"):
        home.move()
    assert (home.cache / "keys").exists() and not home.data.exists()


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a process that does it."""
    if (child := os.fork()) == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(step: int, home: Home) -> bool:
    """Moves in a process that dies before its step-th change to a disk; False where it had fewer."""

    def work() -> None:
        left = step
        for module, name in ((os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "fsync"), (os, "open")):
            real = getattr(module, name)

            def dies(*arguments: object, real: Callable[..., object] = real, **more: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return real(*arguments, **more)

            setattr(module, name, dies)
        home.move()

    status = in_child(work)
    assert status in (0, 9)
    return status == 9


def test_wherever_a_process_is_killed_the_next_one_goes_on(home: Home) -> None:
    step = 0
    while True:
        for place in (home.cache, home.data, home.state):
            shutil.rmtree(place, ignore_errors=True)
        home.fill()
        if not killed_at(step, home):
            break
        home.move()
        home.check()
        step += 1
    assert step > 10


def test_of_several_at_once_each_finds_everything_in_its_place(home: Home) -> None:
    for _ in range(10):
        for place in (home.cache, home.data, home.state):
            shutil.rmtree(place, ignore_errors=True)
        home.fill()
        read, write = os.pipe()

        def work(gate: int = read) -> None:
            os.read(gate, 1)
            home.move()
            home.check()

        children = []
        for _ in range(4):
            if (child := os.fork()) == 0:
                try:
                    os.close(write)
                    work()
                    os._exit(0)
                finally:
                    os._exit(70)
            children.append(child)
        os.close(read)
        os.close(write)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
        home.check()


def test_a_disk_without_room_is_said_and_nothing_is_lost(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.fill()
    home.data.parent.mkdir(parents=True)
    home.data.write_bytes(b"a file where a folder is to be")
    with pytest.raises(ConfigError, match=f"cannot move .*keys.*SHOAL_HOME={home.cache}"):
        home.move()
    assert (home.cache / "keys" / "authority" / "authority.pem").read_bytes() == KEY
