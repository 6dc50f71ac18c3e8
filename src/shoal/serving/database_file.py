"""An SQLite file of things that can be spared: one that is damaged is set aside, and a new one begins.

Several processes may use it. All calls block; none is made from the event loop. What was written last may be lost with the machine's power,
and nothing else.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from shoal.errors import CapacityError, ConfigError
from shoal.file_lock import locked

log = structlog.get_logger()


@dataclass(frozen=True)
class DatabaseKind:
    """name: in words, 'response cache'. application, version: that SQLite keeps in the file. tables: statements that make them. checked:
    whether the whole file is read when it is opened, for small ones."""

    name: str
    application: int
    version: int
    tables: str
    checked: bool = False


class DatabaseFile:
    """One connection, used by one thread at a time."""

    def __init__(self, path: Path, kind: DatabaseKind) -> None:
        """A damaged file is set aside, with a warning. Raises OSError, sqlite3.Error, and ConfigError if the file is none of this kind."""
        self._path, self._kind = path, kind
        self._lock = path.with_name(f"{path.name}.lock")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(self._lock):
            self.connection = self._open()

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """All or nothing. Raises CapacityError, also if the file proves to be damaged: then it is a new one."""
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                self.connection.rollback()
                raise
        except sqlite3.Error as error:
            if _is_damage(error):
                self._begin_anew(error)
            raise CapacityError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        """Raises OSError, sqlite3.Error, ConfigError."""
        try:
            return self._connect()
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            return self._connect()

    def _begin_anew(self, damage: sqlite3.Error) -> None:
        """Raises CapacityError."""
        self.connection.close()
        try:
            with _alone(self._lock):
                if self._path.exists() and self._path.stat().st_ino == self._file:  # else another process has done it
                    self._set_aside(damage)
                self.connection = self._open()
        except (OSError, sqlite3.Error, ConfigError) as error:
            raise CapacityError(f"{self._path}: {damage}; no new one can be made: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        with suppress(FileExistsError):  # for its owner alone
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        weakref.finalize(self, connection.close)
        self._file = self._path.stat().st_ino
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        kind = self._kind
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,), (version,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        if tables and application != kind.application:
            raise ConfigError(f"{self._path} is a database, but no {kind.name}; move it away, or choose another --data")
        if tables and version != kind.version:
            raise ConfigError(
                f"{self._path} is of another version of shoal ({version}, this is {kind.version}); delete it, or choose another --data"
            )
        if tables and kind.checked and (found := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there are tables
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            marks = f"PRAGMA application_id = {kind.application}; PRAGMA user_version = {kind.version};"
            connection.executescript(f"BEGIN IMMEDIATE; {kind.tables} {marks} COMMIT;")

    def _set_aside(self, damage: sqlite3.Error) -> None:
        """Raises OSError."""
        number, name = 1, self._path.name
        while (aside := self._path.with_name(f"{name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm"):  # of no use without it
            self._path.with_name(name + suffix).unlink(missing_ok=True)
        self._path.rename(aside)
        log.warning(f"the {self._kind.name} is damaged; it was set aside, and a new one begins", file=str(aside), reason=str(damage))


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not what SQLite writes; otherwise it is busy, or the disk is full."""
    return type(error) is sqlite3.DatabaseError


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """While no other process opens the file. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        locked(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
