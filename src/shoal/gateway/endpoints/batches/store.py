"""The batches in the database: each move is a transaction on the current batch."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Sequence
from time import time
from typing import Any

import msgspec

from shoal.config import ApiSettings
from shoal.errors import QueueFull, UnknownObject
from shoal.gateway.endpoints.batches.state import WINDOW, Batch, BatchStatus, Counts, moved
from shoal.gateway.endpoints.database import Database
from shoal.gateway.schema.page import Page

_KEPT = 10_000
"""Ended batches that can still be looked up; older ones are forgotten, but not their files."""


class BatchStore:
    def __init__(self, database: Database, settings: ApiSettings, now: Callable[[], float] = time) -> None:
        self._database, self._settings, self._now = database, settings, now

    def create(self, owner: str, models: Sequence[str], endpoint: str, input_file_id: str, metadata: dict[str, str] | None) -> Batch:
        """models: that there are, the default first. Raises QueueFull."""
        at = int(self._now())
        batch = Batch(
            id="batch_" + secrets.token_hex(12),
            owner=owner,
            model=models[0],
            models=tuple(sorted(models)),
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=at,
            expires_at=at + WINDOW,
            metadata=metadata,
        )
        with self._database.transaction() as db:
            (waiting,) = db.execute("SELECT COUNT(*) FROM batches WHERE open = 1").fetchone()
            if waiting >= self._settings.batch_queue:
                raise QueueFull(waiting, self._settings.batch_queue, "batches")
            db.execute("INSERT INTO batches (id, owner, input, open, batch) VALUES (?, ?, ?, 1, ?)", _row(batch))
            db.execute(f"DELETE FROM batches WHERE open = 0 AND seq <= (SELECT MAX(seq) FROM batches) - {_KEPT}")
        return batch

    def get(self, id: str) -> Batch:
        """Raises UnknownObject."""
        with self._database.transaction() as db:
            return _get(db, id)

    def find(self, owner: str, id: str) -> Batch:
        """Raises UnknownObject, also if it belongs to another owner."""
        with self._database.transaction() as db:
            batch = _get(db, id)
        if batch.owner != owner:
            raise UnknownObject("batch", id)
        return batch

    def page(self, owner: str, page: Page) -> tuple[list[Batch], bool]:
        """Some batches, and whether there are more. Raises InvalidRequest."""
        with self._database.transaction() as db:
            rows, more = page.rows(db, "batches", "batch", {"owner": owner})
        return [_batch(row) for row in rows], more

    def open(self) -> list[Batch]:
        """All batches that have not ended, oldest first."""
        with self._database.transaction() as db:
            return [_batch(row) for row in db.execute("SELECT batch FROM batches WHERE open = 1 ORDER BY seq")]

    def move(self, id: str, to: BatchStatus, **changes: Any) -> Batch:
        """Returns the batch after the move. Raises Conflict, UnknownObject."""
        return self._change(id, lambda batch: moved(batch, to, self._now(), **changes))

    def count(self, id: str, counts: Counts) -> None:
        """Raises UnknownObject."""
        self._change(id, lambda batch: msgspec.structs.replace(batch, counts=counts))

    def _change(self, id: str, change: Callable[[Batch], Batch]) -> Batch:
        with self._database.transaction() as db:
            batch = change(_get(db, id))
            db.execute("UPDATE batches SET open = ?, batch = ? WHERE id = ?", (batch.open, msgspec.json.encode(batch), id))
        return batch


def _row(batch: Batch) -> tuple[Any, ...]:
    return batch.id, batch.owner, batch.input_file_id, msgspec.json.encode(batch)


def _batch(row: tuple[bytes]) -> Batch:
    return msgspec.json.decode(row[0], type=Batch)


def _get(db: sqlite3.Connection, id: str) -> Batch:
    row = db.execute("SELECT batch FROM batches WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise UnknownObject("batch", id)
    return _batch(row)
