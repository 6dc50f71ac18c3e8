"""How many requests each model got in each minute of the last weeks, in one SQLite file.

All calls block; none is made from the event loop. A minute without requests has a row as any other: one without a row is a minute in which
no head counted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from shoal.errors import ConfigError
from shoal.serving.database_file import DatabaseFile, DatabaseKind

NAME = "traffic.sqlite"
MINUTE = 60
KEPT = 36 * 24 * 60
"""Minutes: five weeks and a day."""
_KIND = DatabaseKind(
    "history of traffic",
    application=0x5C0A17AF,
    version=1,
    tables="""
CREATE TABLE minutes (
    model    TEXT NOT NULL,
    minute   INTEGER NOT NULL,  -- since 1970
    requests INTEGER NOT NULL,
    PRIMARY KEY (model, minute)
) WITHOUT ROWID;
""",
    checked=True,
)


class TrafficHistory:
    """One connection, used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """A damaged file is set aside, with a warning. Raises ConfigError if the file is no history of traffic, or cannot be used."""
        try:
            self._file = DatabaseFile(folder / NAME, _KIND)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep the traffic of models in {folder / NAME}: {error}; choose another --data") from error

    def add(self, minute: int, requests: Mapping[str, int]) -> None:
        """Requests by model that arrived in a minute, counted since 1970; further ones of the same minute are added. Raises CapacityError."""
        with self._file.transaction() as connection:
            connection.executemany(
                "INSERT INTO minutes VALUES (?, ?, ?) ON CONFLICT (model, minute) DO UPDATE SET requests = requests + excluded.requests",
                [(model, minute, count) for model, count in requests.items()],
            )
            connection.execute("DELETE FROM minutes WHERE minute < ?", (minute - KEPT,))

    def minutes(self, model: str, until: int) -> list[int | None]:
        """Requests of each minute from the first that is known, but of five weeks at most, to the one before `until`; None: nobody
        counted. Raises CapacityError."""
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT minute, requests FROM minutes WHERE model = ? AND minute >= ? AND minute < ? ORDER BY minute",
                (model, until - KEPT, until),
            ).fetchall()
        if not rows:
            return []
        counts: list[int | None] = [None] * (until - rows[0][0])
        for minute, requests in rows:
            counts[minute - rows[0][0]] = requests
        return counts

    def close(self) -> None:
        self._file.close()
