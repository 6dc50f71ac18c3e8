"""Kept answers on the disk, in one SQLite file that the API's processes share.

All calls block; none is made from the event loop. What was written last may be lost with the machine's power, and nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import time

import structlog

from shoal.errors import CapacityError, ConfigError
from shoal.serving.database_file import DatabaseFile, DatabaseKind
from shoal.serving.response_cache import surplus

log = structlog.get_logger()

NAME = "response-cache.sqlite"
OVERHEAD = 256
"""Bytes that an answer counts more than its own: about what its row and the indices take."""
_KIND = DatabaseKind(
    "response cache",
    application=0x5C0A1CAC,
    version=1,
    tables="""
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
""",
)
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
        try:
            self._file = DatabaseFile(self._path, _KIND)
            self.begun = self._fit()
            self._file.connection.executescript("PRAGMA incremental_vacuum;")  # gives the disk its room back; `execute` would do one page
        except (OSError, sqlite3.Error, CapacityError) as error:
            raise ConfigError(
                f"cannot keep answers in {self._path}: {error}; choose another --data, or leave out --response-cache"
            ) from error

    def get(self, key: bytes, oldest: float) -> FoundAnswer | None:
        """Counts as a use. oldest: most seconds since it was made. Raises CapacityError."""
        with self._file.transaction() as connection:
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
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM answers WHERE key = ?", (key,))
            connection.execute("DELETE FROM answers WHERE made < ?", (now - self.lifetime,))
            if size <= self._bound:
                row = (key, answer, _digest(answer), size, now)
                connection.execute(f"INSERT INTO answers (key, answer, digest, bytes, made, used) VALUES (?, ?, ?, ?, ?, {_NEXT})", row)
            return self._fitted(connection)

    def _fit(self) -> CacheRoom:
        """Throws away what is too old or too much. Raises CapacityError."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM answers WHERE made < ?", (self._clock() - self.lifetime,))
            return self._fitted(connection)

    def close(self) -> None:
        self._file.close()

    def _fitted(self, connection: sqlite3.Connection) -> CacheRoom:
        (taken,) = connection.execute("SELECT taken FROM room").fetchone()
        gone = surplus(taken, self._bound, connection.execute("SELECT number, bytes FROM answers ORDER BY used"))
        connection.executemany("DELETE FROM answers WHERE number = ?", [(number,) for number in gone])
        (taken,) = connection.execute("SELECT taken FROM room").fetchone()
        return CacheRoom(taken, len(gone))


def _digest(answer: bytes) -> bytes:
    return blake2b(answer, digest_size=8).digest()
