"""A file of records in a folder that one process uses: appended to, and rewritten with only the live answers when it has grown."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from shoal.errors import ConfigError
from shoal.file_lock import lock_file
from shoal.pipeline import records

_BOUND = 8 << 20  # bytes of the file above which it is rewritten with only the live answers


def log_folder(state: Path, name: str) -> Path:
    """The folder in `state`, never another one, for the log of the model of that name."""
    quoted = quote(name, safe="")
    return state / (quoted if quoted.strip(".") else "%" + quoted.replace(".", "%2E"))


class LogFile:
    def __init__(self, folder: Path) -> None:
        """Creates the folder, and locks it for as long as the process lives or until `close`. Raises OSError, and ConfigError if another
        process has it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / "requests"
        self._lock = _locked(folder / "lock")
        self._file: int | None = None
        self._bytes = self._bound = 0

    def read(self) -> bytes:
        """What it holds. Raises OSError."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def replace(self, data: bytes) -> None:
        """Begins it anew, whole or not at all. Raises OSError."""
        file = _replaced(self.path, data)
        if self._file is not None:
            os.close(self._file)
        self._file, self._bytes = file, len(data)
        self._bound = max(_BOUND, 2 * self._bytes)

    def append(self, data: bytes) -> None:
        """After a `replace`. Raises OSError."""
        assert self._file is not None
        view = memoryview(data)
        while view:
            count = os.write(self._file, view)
            self._bytes += count
            view = view[count:]

    @property
    def grown(self) -> bool:
        """Whether it is worth to `compact` it."""
        return self._bytes > self._bound

    def compact(self) -> None:
        """Rewrites it without the answers that are gone. Raises OSError."""
        ledger, _ = records.read(self.read())
        self.replace(records.written(ledger.identity or "", ledger.answers.values()))

    def close(self) -> None:
        """Lets other processes have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        os.close(self._lock)


def _locked(path: Path) -> int:
    """Raises ConfigError if another process holds the lock."""
    if (lock := lock_file(path)) is None:
        raise ConfigError(f"another head keeps its requests in {path.parent}; choose another --state")
    return lock


def _replaced(path: Path, data: bytes) -> int:
    """Replaces a file, whole or not at all. Returns a descriptor for appending."""
    fresh = path.with_suffix(".new")
    file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        if hasattr(os, "fchmod"):  # prompts are private, whoever created the file
            os.fchmod(file, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
        os.replace(fresh, path)
    except OSError:
        os.close(file)
        with suppress(OSError):
            os.unlink(fresh)
        raise
    return file
