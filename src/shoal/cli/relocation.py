"""Moves data that earlier versions kept in the cache to its current place, once: a cache cleaner would delete the authority with it.

    cache/keys, cache/api    ─▶  data/keys, data/api          one rename each, if both are on one file system
    cache/heads, cache/chat  ─▶  state/heads, state/chat      otherwise: claimed by a rename in the cache, copied beside its place,
                                                              synced to disk, renamed into its place, the old one deleted

A process that is killed in between leaves a state from which the next one continues; if several start at once, one moves and
the others wait. Nothing is moved to or from a folder that the user named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from shoal.cli.show import line
from shoal.errors import ConfigError
from shoal.file_lock import locked
from shoal.folders import cache_dir, data_dir, named, state_dir

_DATA, _STATE = ("keys", "api"), ("heads", "chat")


def move_in(tell: Callable[[str], None] = line) -> None:
    """Call it before any kept data is read or written. Raises ConfigError if the data cannot be moved."""
    if named():
        return
    old = cache_dir()
    places = [(name, data_dir() / name) for name in _DATA] + [(name, state_dir() / name) for name in _STATE]
    if not any(os.path.lexists(old / name) or os.path.lexists(_claimed(old, name)) for name, _ in places):
        return
    if os.path.ismount(old):  # most likely a container's volume: without it, the next start would have no keys
        raise ConfigError(
            f"{old} is a file system of its own and holds keys, which are kept in {data_dir()} from this version on; to leave them where they "
            f"are, set SHOAL_HOME={old}; to move them, do so by hand"
        )
    with _alone(old):
        moved = [(name, new.parent) for name, new in places if _move(old, name, new, tell)]
    if moved:
        folders = dict.fromkeys(folder for _, folder in moved)
        what = "; ".join(f"{', '.join(name for name, at in moved if at == folder)} to {folder}" for folder in folders)
        tell(f"moved out of {old}, where a cleaner of caches could delete it: {what}")


def _claimed(old: Path, name: str) -> Path:
    return old / f".{name}.moving"


@contextmanager
def _alone(old: Path) -> Generator[None]:
    """Only one process at a time. Raises ConfigError."""
    try:
        descriptor = os.open(old, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot open {old}: {error.strerror}") from error
    try:
        locked(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _move(old: Path, name: str, new: Path, tell: Callable[[str], None]) -> bool:
    """Whether something was moved. Raises ConfigError."""
    source, claimed = old / name, _claimed(old, name)
    try:
        new.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if claimed.exists():  # another process was killed while moving it
            _finish(claimed, new)
            return True
        if not os.path.lexists(source):
            return False
        if _holds_something(new):
            tell(f"{source} is an earlier version's and is not used, {new} is: delete the one that is not wanted")
            return False
        try:
            _rename(source, new)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            os.rename(source, claimed)
            _finish(claimed, new)
    except OSError as error:
        raise ConfigError(
            f"cannot move {source} to {new}: {error.strerror or error}; mend that, or set SHOAL_HOME={old} to leave it where it is"
        ) from error
    return True


def _holds_something(place: Path) -> bool:
    return os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir()))


def _rename(source: Path, new: Path) -> None:
    """Moves in one step. Raises OSError."""
    if source.is_symlink():  # it may be relative
        with contextlib.suppress(FileNotFoundError):
            new.rmdir()
        os.symlink(source.resolve(), new)
        source.unlink()
    else:
        os.rename(source, new)
        _sync(new.parent)


def _finish(claimed: Path, new: Path) -> None:
    """Copies to another file system, then deletes the source. Raises OSError; the claimed source is then still complete."""
    for left in new.parent.glob(f".{new.name}.moving-*"):
        shutil.rmtree(left)
    if not _holds_something(new):
        beside = Path(tempfile.mkdtemp(prefix=f".{new.name}.moving-", dir=new.parent))  # mode 0700
        shutil.copytree(claimed, beside / "whole", symlinks=True)
        for folder, _, files in os.walk(beside):
            for path in (*(Path(folder, file) for file in files), Path(folder)):
                _sync(path)
        os.rename(beside / "whole", new)
        _sync(new.parent)
        beside.rmdir()
    shutil.rmtree(claimed)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
