"""Responses on the disk, in one SQLite file that several processes may use at once.

A row is a response and its input, not the conversation before it: that is the chain of rows that `previous` forms. All calls
block; none is made from the event loop. Limited in number, bytes and age: the least recently used go first, and using a
response counts as using all those before it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any, Protocol

import psutil

from shoal.config import ApiSettings
from shoal.errors import CapacityError, IdTaken, InvalidRequest, UnknownAnswer
from shoal.sizes import human_bytes

MAX_CONVERSATION = 16 << 20
"""Bytes of the responses of one conversation, and their inputs."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id       TEXT PRIMARY KEY,
    owner    TEXT NOT NULL,
    previous TEXT,
    runner   TEXT NOT NULL,  -- the process that it runs in; empty once it is over
    response TEXT NOT NULL,  -- JSON, as clients get it
    input    TEXT NOT NULL,  -- JSON: the items it was asked
    bytes    INTEGER NOT NULL,
    created  REAL NOT NULL,  -- seconds since 1970
    used     REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, bytes);
CREATE INDEX IF NOT EXISTS responses_by_age ON responses (created);
"""


@dataclass(frozen=True)
class Bounds:
    responses: int
    bytes: int
    seconds: float
    """Age at which a response is forgotten."""

    @classmethod
    def of(cls, settings: ApiSettings) -> Bounds:
        return cls(settings.responses, settings.responses_bytes, settings.responses_days * 86400)


@dataclass(frozen=True)
class KeptResponse:
    response: dict[str, Any]
    input: list[dict[str, Any]]
    previous: str | None
    bytes: int


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


_NOWHERE = "0 0"
"""A process that does not exist."""


def _this_process() -> str:
    return f"{os.getpid()} {psutil.Process().create_time()}"


def _lives(runner: str) -> bool:
    pid, started = runner.split()
    try:
        return str(psutil.Process(int(pid)).create_time()) == started
    except psutil.Error:
        return False


class Turns(Protocol):
    """Looks up conversations."""

    @property
    def keeps(self) -> bool:
        """Whether anything is stored at all."""
        ...

    def get(self, id: str, owner: str = "") -> KeptResponse:
        """Raises UnknownAnswer, CapacityError."""
        ...

    def chain(self, id: str, owner: str = "") -> list[KeptResponse]:
        """The conversation up to and including a response, in order. Raises InvalidRequest, CapacityError."""
        ...


class Responses(Protocol):
    """Keeps responses: see ResponseStore."""

    @property
    def keeps(self) -> bool: ...
    def begin(self, response: dict[str, Any], input: Sequence[dict[str, Any]], owner: str = "") -> None: ...
    def adopt(self, id: str) -> None: ...
    def end(self, response: dict[str, Any]) -> None: ...
    def get(self, id: str, owner: str = "", runs: bool = False) -> KeptResponse: ...
    def chain(self, id: str, owner: str = "") -> list[KeptResponse]: ...
    def delete(self, id: str, owner: str = "") -> None: ...


class ResponseStore:
    """owner: of a response; nobody else finds it."""

    def __init__(self, folder: Path, bounds: Bounds, clock: Callable[[], float] = time) -> None:
        """The folder and the file are created on first use, and never if nothing is stored. clock: seconds since 1970."""
        self._path = folder / "responses.sqlite"
        self._bounds, self._clock = bounds, clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @property
    def keeps(self) -> bool:
        """Whether anything is stored at all."""
        return self._bounds.responses > 0

    def begin(self, response: dict[str, Any], input: Sequence[dict[str, Any]], owner: str = "") -> None:
        """Adds a response that runs in this process. Raises IdTaken, CapacityError."""
        whole, items = _json(response), _json(input)
        now, previous, size = self._clock(), response["previous_response_id"], len(whole.encode()) + len(items.encode())
        row = (response["id"], owner, previous, _this_process(), whole, items, size, now, now)
        with self._transaction() as connection:
            if not connection.execute("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount:
                raise IdTaken(response["id"])

    def adopt(self, id: str) -> None:
        """A response that another process began now runs in this one; ignored if it has ended. Raises CapacityError."""
        with self._transaction() as connection:
            connection.execute("UPDATE responses SET runner = ? WHERE id = ? AND runner != ''", (_this_process(), id))

    def lose(self, ids: Sequence[str]) -> None:
        """These run nowhere any more, unless they are adopted; ignored for those that have ended. Raises CapacityError."""
        with self._transaction() as connection:
            gone = [(_NOWHERE, id) for id in ids]
            connection.executemany("UPDATE responses SET runner = ? WHERE id = ? AND runner != ''", gone)

    def end(self, response: dict[str, Any]) -> None:
        """Stores a response's end; ignored if it was deleted meanwhile. Raises CapacityError."""
        whole, now = _json(response), self._clock()
        with self._transaction() as connection:
            connection.execute(
                "UPDATE responses SET response = ?1, runner = '', bytes = ?2 + length(CAST(input AS BLOB)), used = ?3 WHERE id = ?4",
                (whole, len(whole.encode()), now, response["id"]),
            )
            # A response too large to be stored would first push out all the others.
            connection.execute("DELETE FROM responses WHERE id = ? AND bytes > ?", (response["id"], self._bounds.bytes))
            connection.execute("DELETE FROM responses WHERE created < ?", (now - self._bounds.seconds,))
            self._evict(connection)

    def get(self, id: str, owner: str = "", runs: bool = False) -> KeptResponse:
        """runs: whether it is known to be running, whichever process began it. Raises UnknownAnswer, CapacityError."""
        with self._transaction() as connection:
            kept = self._read(connection, id, owner, runs)
            if kept is None:
                raise UnknownAnswer(id)
            self._use(connection, [id])
        return kept

    def chain(self, id: str, owner: str = "") -> list[KeptResponse]:
        """The conversation up to and including a response, in order. Raises InvalidRequest, CapacityError."""
        found: list[KeptResponse] = []
        ids: list[str] = []
        at: str | None = id
        size = 0
        with self._transaction() as connection:
            while at is not None:
                kept = self._read(connection, at, owner)
                if kept is None:
                    what = "" if at == id else f" ({at}, which it goes on from, was deleted or forgotten)"
                    message = f"previous response '{id}' not found{what}; send the conversation itself as input"
                    raise InvalidRequest(message, "previous_response_id", "previous_response_not_found")
                size += kept.bytes
                if size > MAX_CONVERSATION:
                    most = human_bytes(MAX_CONVERSATION)
                    raise InvalidRequest(f"the conversation up to '{id}' has more than {most}; begin a new one", "previous_response_id")
                found.append(kept)
                ids.append(at)
                at = kept.previous
            self._use(connection, ids)
        return found[::-1]

    def delete(self, id: str, owner: str = "") -> None:
        """Raises UnknownAnswer, CapacityError."""
        with self._transaction() as connection:
            if not connection.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (id, owner)).rowcount:
                raise UnknownAnswer(id)

    def _evict(self, connection: sqlite3.Connection) -> None:
        """Deletes the least recently used until the rest is within the limits."""
        count, size = connection.execute("SELECT count(*), total(bytes) FROM responses").fetchone()
        gone: list[tuple[str]] = []
        rows = connection.execute("SELECT id, bytes FROM responses ORDER BY used")
        while count > self._bounds.responses or size > self._bounds.bytes:
            id, own = rows.fetchone()
            gone.append((id,))
            count, size = count - 1, size - own
        rows.close()
        connection.executemany("DELETE FROM responses WHERE id = ?", gone)

    def _read(self, connection: sqlite3.Connection, id: str, owner: str, runs: bool = False) -> KeptResponse | None:
        oldest = self._clock() - self._bounds.seconds
        asked = "SELECT response, input, previous, bytes, runner FROM responses WHERE id = ? AND owner = ? AND created >= ?"
        row = connection.execute(asked, (id, owner, oldest)).fetchone()
        if row is None:
            return None
        response = json.loads(row[0])
        if row[4] and not runs and not _lives(row[4]):
            error = {"code": "server_error", "message": "the server was ended while this response ran; send the request again"}
            response |= {"status": "failed", "error": error}
        return KeptResponse(response, json.loads(row[1]), row[2], row[3])

    def _use(self, connection: sqlite3.Connection, ids: list[str]) -> None:
        connection.executemany("UPDATE responses SET used = ? WHERE id = ?", [(self._clock(), id) for id in ids])

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        try:
            with self._lock:
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    connection.rollback()
                    raise
        except (sqlite3.Error, OSError) as error:
            raise CapacityError(f"{self._path}: responses cannot be kept ({error}); fix that, or send store: false") from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            if self.keeps:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with suppress(FileExistsError):  # it contains conversations: for its owner alone
                    os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
            path = self._path if self.keeps else ":memory:"
            connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, connection.close)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
            self._connection = connection
        return self._connection
