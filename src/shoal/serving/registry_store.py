"""The models that a head knows, and their aliases, in a SQLite file that outlives it.

All calls block, for less than a millisecond each; one thread at a time makes them. A file that is damaged, or was cut short, is set
aside and a new one begins: what the head serves is written to it again, but aliases have to be set anew.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import structlog

from shoal.errors import CapacityError, ConfigError

log = structlog.get_logger()

NAME = "models.sqlite"
_APPLICATION = 0x5C0A13E6
_VERSION = 1
_TABLES = f"""
CREATE TABLE models (
    name  TEXT PRIMARY KEY,
    entry BLOB NOT NULL,     -- JSON
    used  REAL NOT NULL      -- seconds since 1970
);
CREATE TABLE aliases (alias TEXT PRIMARY KEY, target TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
"""


class RegisteredFile(msgspec.Struct, frozen=True):
    """sha256: in hexadecimal; '': not computed, because no other machine needs it."""

    name: str
    size: int
    sha256: str = ""


class RegisteredModel(msgspec.Struct, frozen=True):
    """A model that was served at least once.

    name:         by which requests ask for it
    reference:    what `--model` takes
    version:      counts the changes of its files, from 1
    family, quantization, parameters, bytes: see facts.ModelFacts
    context:      tokens of the longest sequence
    can:          'chat', 'tools', 'reasoning', 'json', 'embeddings'
    replicas:     copies that were asked for last
    """

    name: str
    reference: str
    family: str
    quantization: str
    context: int
    parameters: int
    bytes: int
    can: list[str] = []
    files: list[RegisteredFile] = []
    replicas: int = 1
    version: int = 1


class RegistryStore:
    """One connection."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the file is no registry of this version, or cannot be used."""
        self._path = folder / NAME
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep what is known of models in {self._path}: {error}; choose another --data") from error

    def models(self) -> dict[str, RegisteredModel]:
        """By name; the one that was used last comes first. Raises CapacityError."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT name, entry FROM models ORDER BY used DESC").fetchall()
        out: dict[str, RegisteredModel] = {}
        for name, entry in rows:
            try:
                out[name] = msgspec.json.decode(entry, type=RegisteredModel)
            except msgspec.MsgspecError as error:
                log.warning("what was known of a model cannot be read, and is left out", model=name, reason=str(error))
        return out

    def record(self, model: RegisteredModel, now: float) -> RegisteredModel:
        """In place of what was known of it, with its version. now: seconds since 1970. Raises CapacityError."""
        known = self.models().get(model.name)
        if known is not None:
            changed = (known.reference, known.files) != (model.reference, model.files)
            model = msgspec.structs.replace(model, version=known.version + changed)
        with self._transaction() as connection:
            row = (model.name, msgspec.json.encode(model), now)
            connection.execute("INSERT OR REPLACE INTO models (name, entry, used) VALUES (?, ?, ?)", row)
        return model

    def forget(self, name: str) -> None:
        """Raises CapacityError."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM models WHERE name = ?", (name,))

    def aliases(self) -> dict[str, str]:
        """Raises CapacityError."""
        with self._transaction() as connection:
            return dict(connection.execute("SELECT alias, target FROM aliases ORDER BY alias").fetchall())

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """All of them, and no others. Raises CapacityError."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM aliases")
            rows: Sequence[tuple[str, str]] = [*aliases.items()]
            connection.executemany("INSERT INTO aliases (alias, target) VALUES (?, ?)", rows)

    def close(self) -> None:
        self._connection.close()

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
            raise CapacityError(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # it is busy, or the disk is full
                raise
            self._set_aside(error)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        with suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.Error, ConfigError."""
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,), (version,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
        if tables and application != _APPLICATION:
            raise ConfigError(f"{self._path} is a database, but no registry of models; move it away, or choose another --data")
        if tables and version != _VERSION:
            raise ConfigError(f"{self._path} is of another version of shoal ({version}, this is {_VERSION}); choose another --data")
        if not tables:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        elif connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("it is damaged")

    def _set_aside(self, damage: sqlite3.Error) -> None:
        """Raises OSError."""
        number = 1
        while (aside := self._path.with_name(f"{NAME}.damaged-{number}")).exists():
            number += 1
        self._path.rename(aside)
        self._path.with_name(f"{NAME}-journal").unlink(missing_ok=True)
        log.error(
            "the registry of models is damaged; it was set aside and a new one begins, so aliases have to be set again",
            file=str(aside),
            reason=str(damage),
        )
