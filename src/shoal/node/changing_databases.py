"""SQLite files of the leading head, as they are to be copied: whole, when another connection has changed them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

Version = tuple[int, int]
"""The file's number, and SQLite's of its data."""


class ChangingDatabases:
    """A followers.Changing."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        self._folder, self._names = folder, names
        self._open: dict[str, tuple[int, sqlite3.Connection]] = {}
        """By name: which file it was, and a connection to it."""
        self._lock = threading.Lock()
        """Each standby has a thread that looks."""

    def changed(self, known: Mapping[str, Version]) -> dict[str, tuple[Version, bytes]]:
        """Raises OSError, sqlite3.Error."""
        with self._lock:
            return self._changed(known)

    def _changed(self, known: Mapping[str, Version]) -> dict[str, tuple[Version, bytes]]:
        out: dict[str, tuple[Version, bytes]] = {}
        for name in self._names:
            path = self._folder / name
            if not path.exists():
                continue
            connection = self._connection(name, path)
            version = (self._open[name][0], int(connection.execute("PRAGMA data_version").fetchone()[0]))
            if known.get(name) != version:
                out[name] = (version, connection.serialize())
        return out

    def _connection(self, name: str, path: Path) -> sqlite3.Connection:
        number = path.stat().st_ino
        if (opened := self._open.get(name)) is not None:
            if opened[0] == number:
                return opened[1]
            opened[1].close()  # the file was set aside, and a new one begun
        connection = sqlite3.connect(path, timeout=5, check_same_thread=False)
        self._open[name] = (number, connection)
        return connection

    def close(self) -> None:
        with self._lock:
            for _, connection in self._open.values():
                connection.close()
            self._open.clear()
