"""The records of files and batches, in SQLite: several processes may use it at once."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import CapacityError, ConfigError

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, purpose TEXT NOT NULL,
    filename TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, input TEXT NOT NULL,
    open INTEGER NOT NULL, batch BLOB NOT NULL
);
CREATE INDEX open_batches ON batches (open);
PRAGMA user_version = {_VERSION};
"""


class Database:
    """One connection, used by one thread at a time. Each transaction is on the disk when it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError."""
        path = folder / "batches.sqlite"
        self._turn = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
            self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            with self.transaction():
                (found,) = self._connection.execute("PRAGMA user_version").fetchone()
                if found == 0:
                    for statement in _SCHEMA.split(";"):
                        self._connection.execute(statement)
        except (OSError, sqlite3.Error, CapacityError) as error:
            raise ConfigError(f"cannot keep files and batches in {folder}: {error}; choose another --data") from error
        if found not in (0, _VERSION):
            self.close()
            raise ConfigError(f"{path} was written by another version of shoal ({found}, this is {_VERSION}); choose another --data")

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """All or nothing. Raises CapacityError if the disk fails, or another process does not finish its transaction."""
        with self._turn:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise CapacityError(f"the API's database cannot be read or written now: {error}") from error

    def close(self) -> None:
        self._connection.close()
