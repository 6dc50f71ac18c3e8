"""The files: their bytes in a folder, each under its generated id, and their records in the database."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import tempfile
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from shoal.config import ApiSettings
from shoal.errors import CapacityError, ConfigError, Conflict, InvalidRequest, NoRoom, UnknownObject
from shoal.gateway.endpoints.database import Database
from shoal.gateway.endpoints.files.multipart import Field, FileBegun, FileData, Multipart
from shoal.gateway.schema.page import Page
from shoal.sizes import human_bytes

PURPOSE, OUTPUT = "batch", "batch_output"
_COLUMNS = "id, owner, purpose, filename, bytes, created_at"
_LONGEST_NAME = 255


@dataclass(frozen=True)
class File:
    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    """Seconds since 1970."""

    def wire(self) -> dict[str, Any]:
        known = {"id": self.id, "bytes": self.bytes, "created_at": self.created_at, "filename": self.filename, "purpose": self.purpose}
        return {**known, "object": "file", "status": "processed", "status_details": None, "expires_at": None}


class FileStore:
    def __init__(self, database: Database, settings: ApiSettings, now: Callable[[], float] = time) -> None:
        """Raises ConfigError."""
        self._database, self._settings, self._now = database, settings, now
        self._folder = settings.data_folder / "files"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot keep files in {self._folder}: {error.strerror or error}; choose another --data") from error
        self._arriving = 0  # bytes of unfinished uploads

    def path(self, id: str) -> Path:
        """Where the bytes are, or will be. id: one that shoal generated."""
        return self._folder / id

    # Single files

    async def receive(self, owner: str, content_type: str, body: AsyncIterable[bytes]) -> File:
        """A form with `file` and `purpose`, written to the disk as it arrives. Raises InvalidRequest, NoRoom, CapacityError."""
        form, fields, filename, size = Multipart(content_type), dict[str, str](), None, 0
        room = await asyncio.to_thread(self._room)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")  # mode 0600
        try:
            async for chunk in body:
                for part in form.feed(chunk):
                    match part:
                        case Field(key, value):
                            fields[key] = value
                        case FileBegun("file", given) if filename is None:
                            filename = given
                        case FileBegun(key):
                            raise InvalidRequest(f"only one file is allowed, in the field 'file', not another in '{key[:64]}'", key[:64])
                        case FileData(data):
                            size += len(data)
                            self._arriving += len(data)
                            if size > self._settings.max_file_bytes:
                                raise NoRoom(f"the file is larger than {human_bytes(self._settings.max_file_bytes)}", "file")
                            if self._arriving > room:
                                raise NoRoom(self._full(), "file")
                            await asyncio.to_thread(_write, descriptor, data)
            form.finish()
            self._check_fields(fields, filename)
            await asyncio.to_thread(os.fsync, descriptor)
            file = File("file-" + secrets.token_hex(12), owner, PURPOSE, filename or "", size, int(self._now()))
            await asyncio.to_thread(self._keep, file, name)
            return file
        except OSError as error:
            raise CapacityError(f"the file cannot be written: {error.strerror or error}") from error
        finally:
            self._arriving -= size
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(name)

    def _check_fields(self, fields: dict[str, str], filename: str | None) -> None:
        if filename is None:
            raise InvalidRequest("the form has no file in the field 'file'", "file")
        if len(filename) > _LONGEST_NAME:
            raise InvalidRequest(f"the file's name has more than {_LONGEST_NAME} characters", "file")
        if unknown := set(fields) - {"purpose"}:
            raise InvalidRequest(f"unknown parameter '{min(unknown)[:64]}'", min(unknown)[:64], "unknown_parameter")
        if fields.get("purpose") != PURPOSE:
            raise InvalidRequest(f"the purpose of a file must be '{PURPOSE}'", "purpose")

    def _room(self) -> int:
        """Bytes that still fit. Raises NoRoom if there are too many files."""
        with self._database.transaction() as db:
            return self._left(db)

    def _left(self, db: sqlite3.Connection) -> int:
        count, used = db.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files").fetchone()
        if count >= self._settings.max_files:
            raise NoRoom(f"there are already {count} files, the most that are kept (--max-files); delete some", "file")
        return self._settings.files_space_bytes - int(used)

    def _full(self) -> str:
        return f"the files would take more than {human_bytes(self._settings.files_space_bytes)} (--files-space); delete some"

    def _keep(self, file: File, written: str) -> None:
        """Adds a received file. Others may have arrived meanwhile, so it checks and adds in one transaction. Raises NoRoom."""
        with self._database.transaction() as db:
            if file.bytes > self._left(db):
                raise NoRoom(self._full(), "file")
            os.rename(written, self.path(file.id))
            _insert(db, file)

    def add(self, file: File) -> None:
        """Turns the bytes at its path into a file; repeated calls change nothing."""
        with self._database.transaction() as db:
            _insert(db, file)

    def find(self, owner: str, id: str) -> File:
        """Raises UnknownObject."""
        with self._database.transaction() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ?", (id, owner)).fetchone()
        if row is None or not self.path(row[0]).exists():
            raise UnknownObject("file", id)
        return File(*row)

    def delete(self, owner: str, id: str) -> None:
        """Raises UnknownObject; Conflict while a batch reads the file."""
        file = self.find(owner, id)
        with self._database.transaction() as db:
            reader = db.execute("SELECT id FROM batches WHERE input = ? AND open = 1", (file.id,)).fetchone()
            if reader is not None:
                raise Conflict(f"{reader[0]} reads {file.id}; cancel it first", "file_id")
            db.execute("DELETE FROM files WHERE id = ?", (file.id,))
        self.path(file.id).unlink(missing_ok=True)

    # Many files

    def page(self, owner: str, page: Page, purpose: str = "") -> tuple[list[File], bool]:
        """Some files, and whether there are more. Raises InvalidRequest."""
        with self._database.transaction() as db:
            rows, more = page.rows(db, "files", _COLUMNS, {"owner": owner, **({"purpose": purpose} if purpose else {})})
        return [File(*row) for row in rows], more

    def sweep(self, age: float = 86400.0) -> None:
        """Removes what a crash left behind: broken-off uploads older than `age` seconds, and bytes that never became a file."""
        with self._database.transaction() as db:  # so that none becomes a file meanwhile
            known = {id for (id,) in db.execute("SELECT id FROM files")}
            written = {id.removeprefix("batch_") for (id,) in db.execute("SELECT id FROM batches WHERE open = 1")}
            for path in self._folder.glob("file-*"):
                if path.name not in known and path.name.split("-")[1] not in written:
                    path.unlink(missing_ok=True)
        for left in self._folder.glob(".*.part"):
            if left.stat().st_mtime < self._now() - age:
                left.unlink(missing_ok=True)


def _insert(db: sqlite3.Connection, file: File) -> None:
    values = (file.id, file.owner, file.purpose, file.filename, file.bytes, file.created_at)
    db.execute(f"INSERT OR IGNORE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", values)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
