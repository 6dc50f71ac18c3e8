"""The API's keys in one SQLite file: created by the command line, read by running servers, which record the use of each key."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.gateway.auth.key import UNLIMITED, ApiKey, KeyId, KeyLimits, KeyRole, mint
from shoal.gateway.auth.use import Use
from shoal.request import Priority

_VERSION = 2
_WITHOUT_ROLES = 1
"""The version before."""
_TABLE = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL,
    created INTEGER NOT NULL, expires INTEGER, revoked INTEGER, last_used INTEGER,
    requests_per_minute INTEGER NOT NULL, tokens_per_minute INTEGER NOT NULL, concurrency INTEGER NOT NULL,
    priority INTEGER NOT NULL, role TEXT NOT NULL DEFAULT 'user',
    requests INTEGER NOT NULL DEFAULT 0, prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0
) STRICT
"""


class KeyStore:
    def __init__(self, folder: Path) -> None:
        """The file is created with the first key."""
        self.path = folder / "keys.sqlite"
        self._reader: sqlite3.Connection | None = None

    def create(
        self,
        name: str,
        now: float,
        limits: KeyLimits = UNLIMITED,
        expires: float | None = None,
        priority: Priority = Priority.URGENT,
        role: KeyRole = KeyRole.USER,
    ) -> tuple[ApiKey, str]:
        """A new key and its token, which is stored nowhere else. Raises ConfigError if a valid key has the name."""
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise ConfigError("a key's name has 1 to 100 printable characters")
        self._make()
        id, token, digest = mint()
        key = ApiKey(
            id=id,
            name=name,
            digest=digest,
            created=int(now),
            expires=None if expires is None else int(expires),
            limits=limits,
            priority=priority,
            role=role,
        )
        with self._writing() as file:
            if any(other.name == name and other.good(now) for other in _read(file)):
                raise ConfigError(f"a key named {name} already exists; revoke it, or choose another name")
            file.execute(
                "INSERT INTO keys (id, name, digest, created, expires, requests_per_minute, tokens_per_minute, concurrency, priority, role)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (id, name, digest, key.created, key.expires, limits.requests, limits.tokens, limits.concurrency, int(priority), role),
            )
        return key, token

    def all(self) -> list[ApiKey]:
        """All keys, including revoked ones, oldest first."""
        if not self.path.exists():
            return []
        with self._open() as file:
            return _read(file)

    def revoke(self, name: str, now: float) -> ApiKey:
        """By name or id. Raises ConfigError if there is no such key, or it is already revoked."""
        found = [key for key in self.all() if name in (key.name, key.id) and key.revoked is None]
        if not found:
            raise ConfigError(f"there is no key {name}, or it is already revoked; see `shoal keys list`")
        with self._writing() as file:
            file.executemany("UPDATE keys SET revoked = ? WHERE id = ?", [(int(now), key.id) for key in found])
        return found[-1]

    def add(self, uses: Mapping[KeyId, Use]) -> None:
        """Adds to the recorded use of keys."""
        rows = [(use.requests, use.prompt_tokens, use.completion_tokens, int(use.last), id) for id, use in uses.items()]
        with self._writing() as file:
            file.executemany(
                "UPDATE keys SET requests = requests + ?, prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?,"
                " last_used = max(coalesce(last_used, 0), ?) WHERE id = ?",
                rows,
            )

    def version(self) -> int:
        """A number that changes whenever another connection has written; cheap. 0: there is no file."""
        if self._reader is None:
            if not self.path.exists():
                return 0
            self._reader = self._connect()
        return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _make(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise ConfigError(f"keys cannot be kept in {self.path}: {error.strerror}; choose another folder with --data") from error
        with self._writing() as file:
            file.execute(_TABLE)
            file.execute(f"PRAGMA user_version = {_VERSION}")

    def _connect(self) -> sqlite3.Connection:
        """Raises ConfigError."""
        mode = self.path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(f"{self.path} can be read by others; run chmod 600 on it and replace its keys")
        file = sqlite3.connect(self.path, timeout=10, check_same_thread=False)
        try:
            file.execute("PRAGMA journal_mode = WAL")
            version = file.execute("PRAGMA user_version").fetchone()[0]
            if version == _WITHOUT_ROLES:
                version = _add_roles(file)
        except sqlite3.DatabaseError as error:
            file.close()
            raise self._failed(error) from error
        if version not in (0, _VERSION):
            file.close()
            raise ConfigError(f"{self.path} was written by another version of shoal ({version}); this one reads {_VERSION}")
        return file

    def _failed(self, error: sqlite3.Error) -> ConfigError:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return ConfigError(f"{self.path} is not a key file: {error}; move it away and create new keys")
        return ConfigError(f"{self.path} cannot be read or written now: {error}; fix that, or choose another folder with --data")

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        """Raises ConfigError."""
        with closing(self._connect()) as file:
            try:
                yield file
            except sqlite3.OperationalError as error:
                raise self._failed(error) from error

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        """One transaction, which blocks other writers."""
        with self._open() as file, file:
            file.execute("BEGIN IMMEDIATE")
            yield file


def _add_roles(file: sqlite3.Connection) -> int:
    """Returns the version of the file then."""
    with file:
        file.execute("BEGIN IMMEDIATE")
        if file.execute("PRAGMA user_version").fetchone()[0] == _WITHOUT_ROLES:  # nobody else has done so meanwhile
            file.execute("ALTER TABLE keys ADD COLUMN role TEXT NOT NULL DEFAULT 'user'")
            file.execute(f"PRAGMA user_version = {_VERSION}")
    return _VERSION


def _read(file: sqlite3.Connection) -> list[ApiKey]:
    columns = "id, name, digest, created, expires, revoked, last_used, requests_per_minute, tokens_per_minute, concurrency"
    rows: list[tuple[Any, ...]] = file.execute(
        f"SELECT {columns}, priority, role, requests, prompt_tokens, completion_tokens FROM keys ORDER BY created, rowid"
    ).fetchall()
    return [
        ApiKey(
            id=id,
            name=name,
            digest=digest,
            created=created,
            expires=expires,
            revoked=revoked,
            last_used=used,
            limits=KeyLimits(per_minute, tokens, concurrency),
            priority=Priority(priority),
            role=KeyRole(role),
            requests=requests,
            prompt_tokens=prompt,
            completion_tokens=completion,
        )
        for id, name, digest, created, expires, revoked, used, per_minute, tokens, concurrency, priority, role, requests, prompt, completion in rows
    ]
