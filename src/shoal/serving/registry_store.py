"""The models that a head knows, and their aliases, in a SQLite file that outlives it.

All calls block, for less than a millisecond each; one thread at a time makes them. A file that is damaged, or was cut short, is set
aside and a new one begins: what the head serves is written to it again, but aliases have to be set anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from shoal.errors import ConfigError
from shoal.observed.models import RegisteredModel
from shoal.serving.database_file import DatabaseFile, DatabaseKind

log = structlog.get_logger()

NAME = "models.sqlite"
_KIND = DatabaseKind(
    "registry of models",
    application=0x5C0A13E6,
    version=1,
    tables="""
CREATE TABLE models (
    name  TEXT PRIMARY KEY,
    entry BLOB NOT NULL,     -- JSON
    used  REAL NOT NULL      -- seconds since 1970
);
CREATE TABLE aliases (alias TEXT PRIMARY KEY, target TEXT NOT NULL);
""",
    checked=True,
)


class RegistryStore:
    """One connection."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if the file is no registry of this version, or cannot be used."""
        try:
            self._file = DatabaseFile(folder / NAME, _KIND)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep what is known of models in {folder / NAME}: {error}; choose another --data") from error

    def models(self) -> dict[str, RegisteredModel]:
        """By name; the one that was used last comes first. Raises CapacityError."""
        with self._file.transaction() as connection:
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
        with self._file.transaction() as connection:
            row = (model.name, msgspec.json.encode(model), now)
            connection.execute("INSERT OR REPLACE INTO models (name, entry, used) VALUES (?, ?, ?)", row)
        return model

    def aliases(self) -> dict[str, str]:
        """Raises CapacityError."""
        with self._file.transaction() as connection:
            return dict(connection.execute("SELECT alias, target FROM aliases ORDER BY alias").fetchall())

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """All of them, and no others. Raises CapacityError."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM aliases")
            connection.executemany("INSERT INTO aliases (alias, target) VALUES (?, ?)", [*aliases.items()])

    def close(self) -> None:
        self._file.close()
