"""A file of results that loses none: each is on the disk (fsync) before it counts, and existing results are found again."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from shoal.errors import ConfigError
from shoal.file_lock import locked
from shoal.gateway.endpoints.batches.result import Done, read


class Output:
    """Written by its own thread. After an error it accepts nothing more; reopening it cuts off an incomplete line."""

    def __init__(self, path: Path) -> None:
        """Reads the existing results and appends to them. Raises ConfigError if the file is not an output, or another process
        writes it; OSError."""
        fresh = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if not locked(self._file):
                raise ConfigError(f"another process is writing {path}; wait for it to end, or choose another file")
            with path.open("rb") as lines:
                self.done: Done = read(lines, path)
            os.ftruncate(self._file, self.done.end)
            os.fsync(self._file)
            if fresh:
                _sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise
        self._pending: list[bytes] = []
        self._turn = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="results")
        self._broken: OSError | None = None

    async def append(self, line: bytes) -> None:
        """Returns when the line is on the disk. Lines that come meanwhile are written together. Raises OSError."""
        with self._turn:
            self._pending.append(line)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._flush)

    def put(self, line: bytes) -> None:
        """Writes the line with the next flush, or at the end. For callers in a thread of their own. Raises OSError."""
        with self._turn:
            self._pending.append(line)
        if len(self._pending) >= 1000:
            self._thread.submit(self._flush).result()

    def _flush(self) -> None:
        with self._turn:
            lines, self._pending = self._pending, []
        if self._broken is not None:
            raise self._broken
        if not lines:
            return
        try:
            view = memoryview(b"".join(lines))
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError as error:
            self._broken = error
            raise
        for line in lines:
            self.done.take(line)

    def close(self) -> None:
        """Writes the pending lines; once. Raises OSError."""
        if self._file < 0:
            return
        try:
            self._thread.submit(self._flush).result()
        finally:
            self._thread.shutdown()
            os.close(self._file)
            self._file = -1

    def abandon(self) -> None:
        """Closes it after a known error; requests whose results cannot be written then are asked again."""
        with suppress(OSError):
            self.close()


def _sync_folder(folder: Path) -> None:
    """Puts a file's name on the disk too, if the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
