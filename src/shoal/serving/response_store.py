"""Kept answers on the disk, in one SQLite file that the API's processes share.

All calls block; none is made from the event loop. What was written last may be lost with the machine's power, and nothing else.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import time

import structlog

from shoal.errors import CapacityError, ConfigError
from shoal.file_lock import locked
from shoal.serving.response_cache import surplus

log = structlog.get_logger()

NAME = "response-cache.sqlite"
OVERHEAD = 256
"""Bytes that an answer counts more than its own: about what its row and the indices take."""
_APPLICATION = 0x5C0A1CAC
_VERSION = 1
_TABLES = f"""
CREATE TABLE answers (
    number INTEGER PRIMARY KEY,
    key    BLOB NOT NULL UNIQUE,
    answer BLOB NOT NULL,
    digest BLOB NOT NULL,
    bytes  INTEGER NOT NULL,
    made   REAL NOT NULL,     -- seconds since 1970
    used   INTEGER NOT NULL   -- grows with every use
);
CREATE INDEX answers_by_use ON answers (used, bytes);
CREATE INDEX answers_by_age ON answers (made);
CREATE TABLE room (taken INTEGER NOT NULL);
INSERT INTO room VALUES (0);
CREATE TRIGGER answer_added AFTER INSERT ON answers BEGIN UPDATE room SET taken = taken + NEW.bytes; END;
CREATE TRIGGER answer_gone AFTER DELETE ON answers BEGIN UPDATE room SET taken = taken - OLD.bytes; END;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""
_NEXT = "(SELECT ifnull(max(used), 0) + 1 FROM answers)"


@dataclass(frozen=True)
class FoundAnswer:
    answer: bytes
    age: float
    """Seconds."""


@dataclass(frozen=True)
class CacheRoom:
    taken: int
    """Bytes."""
    evicted: int
    """Answers that had to go for the others."""


class AnswerStore:
    """One connection, used by one thread at a time."""

    def __init__(self, folder: Path, bound: int, lifetime: float, clock: Callable[[], float] = time) -> None:
        """A damaged file is set aside, with a warning. Raises ConfigError if the file is not a response cache, or cannot be used.

        bound: most bytes. lifetime: seconds for which an answer is kept. clock: seconds since 1970.
        """
        self._path, self._bound, self.lifetime, self._clock = folder / NAME, bound, lifetime, clock
        self._lock = folder / f"{NAME}.lock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _alone(self._lock):
                self._connection = self._open()
            self.begun = self._fit()
            self._connection.executescript("PRAGMA incremental_vacuum;")  # gives the disk its room back; `execute` would do one page
        except (OSError, sqlite3.Error, CapacityError) as error:
            raise ConfigError(
                f"cannot keep answers in {self._path}: {error}; choose another --data, or leave out --response-cache"
            ) from error

    def get(self, key: bytes, oldest: float) -> FoundAnswer | None:
        """Counts as a use. oldest: most seconds since it was made. Raises CapacityError."""
        with self._transaction() as connection:
            row = connection.execute("SELECT number, answer, digest, made FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            number, answer, digest, made = row
            if digest != _digest(answer):
                connection.execute("DELETE FROM answers WHERE number = ?", (number,))
                log.warning("a kept answer is not what was written, and is thrown away", file=str(self._path))
                return None
            age = max(self._clock() - made, 0.0)  # the clock may have been set back
            if age > oldest:
                return None
            connection.execute(f"UPDATE answers SET used = {_NEXT} WHERE number = ?", (number,))
            return FoundAnswer(answer, age)

    def put(self, key: bytes, answer: bytes) -> CacheRoom:
        """In place of the one before, if there was one. One that is larger than the store is not kept. Raises CapacityError."""
        now, size = self._clock(), len(answer) + OVERHEAD
        with self._transaction() as connection:
            connection.execute("DELETE FROM answers WHERE key = ?", (key,))
            connection.execute("DELETE FROM answers WHERE made < ?", (now - self.lifetime,))
            if size <= self._bound:
                row = (key, answer, _digest(answer), size, now)
                connection.execute(f"INSERT INTO answers (key, answer, digest, bytes, made, used) VALUES (?, ?, ?, ?, ?, {_NEXT})", row)
            return self._fitted(connection)

    def _fit(self) -> CacheRoom:
        """Throws away what is too old or too much. Raises CapacityError."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM answers WHERE made < ?", (self._clock() - self.lifetime,))
            return self._fitted(connection)

    def close(self) -> None:
        self._connection.close()

    def _fitted(self, connection: sqlite3.Connection) -> CacheRoom:
        (taken,) = connection.execute("SELECT taken FROM room").fetchone()
        gone = surplus(taken, self._bound, connection.execute("SELECT number, bytes FROM answers ORDER BY used"))
        connection.executemany("DELETE FROM answers WHERE number = ?", [(number,) for number in gone])
        (taken,) = connection.execute("SELECT taken FROM room").fetchone()
        return CacheRoom(taken, len(gone))

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
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
        self._connection.close()
        try:
            with _alone(self._lock):
                if self._path.exists() and self._path.stat().st_ino == self._file:  # else another process has done it
                    self._set_aside(damage)
                self._connection = self._open()
        except (OSError, sqlite3.Error, ConfigError) as error:
            raise CapacityError(f"{self._path}: {damage}; no new one can be made: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        with suppress(FileExistsError):  # it contains answers: for its owner alone
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
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,), (version,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        if tables and application != _APPLICATION:
            raise ConfigError(f"{self._path} is a database, but no response cache; move it away, or choose another --data")
        if tables and version != _VERSION:
            raise ConfigError(
                f"{self._path} is of another version of shoal ({version}, this is {_VERSION}); delete it, or choose another --data"
            )
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before there are tables
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if not tables:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")

    def _set_aside(self, damage: sqlite3.Error) -> None:
        """Raises OSError."""
        number = 1
        while (aside := self._path.with_name(f"{NAME}.damaged-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm"):  # of no use without it
            self._path.with_name(NAME + suffix).unlink(missing_ok=True)
        self._path.rename(aside)
        log.warning("the response cache is damaged; it was set aside, and a new one begins", file=str(aside), reason=str(damage))


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not what SQLite writes; otherwise it is busy, or the disk is full."""
    return type(error) is sqlite3.DatabaseError


def _digest(answer: bytes) -> bytes:
    return blake2b(answer, digest_size=8).digest()


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """While no other process opens the file. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        locked(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
