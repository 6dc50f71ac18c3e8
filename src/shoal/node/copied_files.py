"""A standby's copy of what the leading head keeps: the logs of requests, and small files that come whole."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import structlog

from shoal.control.messages import Append, Copy
from shoal.errors import RemoteProtocolError
from shoal.file_lock import lock_file
from shoal.node.led_mark import mark_copied
from shoal.pipeline.log_file import LogFile, log_folder
from shoal.security.private_file import write_private

log = structlog.get_logger()

_LOGS = "requests/"


class CopiedFiles:
    """All calls block; one thread at a time makes them."""

    def __init__(self, state: Path, data: Path, names: Collection[str]) -> None:
        """state, data: the folders that a head on this machine would use. names: of the files that come whole, in `data`. Raises OSError."""
        self._state, self._data, self._names = state, data, names
        self._logs: dict[str, LogFile] = {}
        self._coming: dict[str, list[bytes]] = {}
        self._lock: int | None = None
        self._marked = False

    @property
    def _own(self) -> bool:
        """Whether the folder of `data` is not also that of the head that is copied."""
        if self._lock is None:
            self._lock = held(self._data)
        return self._lock is not None

    def apply(self, message: Copy | Append) -> None:
        """Raises OSError, ConfigError if a file cannot be written or another head uses the folder, RemoteProtocolError for what no head would send."""
        match message:
            case Append(name=name, data=data):
                if name not in self._logs:
                    raise RemoteProtocolError(f"an addition to {name[:100]!r}, which was not copied")
                file = self._logs[name]
                file.append(data)
                if file.grown:
                    file.compact()
            case Copy(name=name, data=data):
                if message.first:
                    self._coming[name] = []
                if name not in self._coming:
                    raise RemoteProtocolError(f"a piece of {name[:100]!r}, whose beginning did not come")
                self._coming[name].append(data)
                if message.last:
                    self._replace(name, b"".join(self._coming.pop(name)))

    def _replace(self, name: str, data: bytes) -> None:
        if not self._marked:
            mark_copied(self._state)
            self._marked = True
        if name.startswith(_LOGS):
            if name not in self._logs:
                self._logs[name] = LogFile(log_folder(self._state, name.removeprefix(_LOGS)))
            self._logs[name].replace(data)
        elif name in self._names:
            if self._own:
                _replace(self._data / name, data)
        else:
            raise RemoteProtocolError(f"a file of the name {name[:100]!r}")

    def close(self) -> None:
        """A head may use the folders now."""
        for file in self._logs.values():
            file.close()
        self._logs.clear()
        self._coming.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def held(data: Path) -> int | None:
    """A lock by which a head shows that it uses this folder for what it serves; None if another one holds it. Raises OSError."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return lock_file(data / "head.lock")


def _replace(path: Path, data: bytes) -> None:
    """An SQLite file, which nobody has open. Raises ConfigError."""
    for suffix in ("-wal", "-shm"):  # of the file that was there
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    write_private(path, data)
