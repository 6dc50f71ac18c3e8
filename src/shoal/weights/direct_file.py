"""A file that is read around the page cache: what is read lies in slots, and a second copy of it would cost the memory they need."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from shoal.errors import WeightsUnreadable
from shoal.weights.slot_memory import ALIGNMENT

if sys.platform == "darwin":
    import fcntl


class Source(Protocol):
    """Where units are read from, by several threads at once."""

    @property
    def path(self) -> Path:
        """For messages."""
        ...

    def read_into(self, offset: int, into: memoryview) -> int:
        """Bytes read from `offset` on into the beginning of `into`; 0 if nothing is there. May be fewer than fit, as of read(2).

        Raises WeightsUnreadable, or OSError.
        """
        ...


class DirectFile:
    """With O_DIRECT where the file system takes it; otherwise the page cache is told to forget what was read (macOS: F_NOCACHE).

    Raises OSError if the file cannot be opened or its beginning not read. That the file is the right one is for a hash to say. It must stay as it is while it
    is open: reads after its size or its time of modification has changed raise WeightsUnreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._plain = _open_plain(path)
        try:
            self._direct = _open_direct(path)
        except OSError:
            os.close(self._plain)
            raise
        status = os.fstat(self._plain)
        self.nbytes = status.st_size
        self._modified = status.st_mtime_ns

    @property
    def path(self) -> Path:
        return self._path

    @property
    def direct(self) -> bool:
        """Whether reads of whole blocks bypass the page cache altogether."""
        return self._direct is not None

    def read_into(self, offset: int, into: memoryview) -> int:
        """See Source. Reads bypass the cache if offset and length are multiples of ALIGNMENT; then the address has to be one, too."""
        if self._direct is not None and not (offset | into.nbytes) % ALIGNMENT:
            count = os.preadv(self._direct, [into], offset)
        else:
            count = _read_plain(self._plain, offset, into)
        status = os.fstat(self._plain)  # after the read: what changes later is not in these bytes
        if (status.st_size, status.st_mtime_ns) != (self.nbytes, self._modified):
            raise WeightsUnreadable(self._path, "the file was changed while it was in use")
        return count

    def close(self) -> None:
        """No read may be under way."""
        os.close(self._plain)
        if self._direct is not None:
            os.close(self._direct)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open_plain(path: Path) -> int:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    if sys.platform == "darwin":
        fcntl.fcntl(file, fcntl.F_NOCACHE, 1)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead, which may be megabytes
    return file


def _open_direct(path: Path) -> int | None:
    """None where the operating or the file system has no direct reads."""
    if sys.platform != "linux":
        return None
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as fault:
        if fault.errno != errno.EINVAL:
            raise
        return None
    try:
        with mmap.mmap(-1, ALIGNMENT) as block:  # some open a file so and then refuse every read, or want larger blocks
            os.preadv(file, [block], 0)
    except OSError as fault:
        os.close(file)
        if fault.errno != errno.EINVAL:
            raise
        return None
    return file


if hasattr(os, "preadv"):

    def _read_plain(file: int, offset: int, into: memoryview) -> int:
        count = os.preadv(file, [into], offset)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, offset, count, os.POSIX_FADV_DONTNEED)
        return count

else:  # Windows: the position belongs to the open file
    _position = threading.Lock()

    def _read_plain(file: int, offset: int, into: memoryview) -> int:
        with _position:
            os.lseek(file, offset, os.SEEK_SET)
            data = os.read(file, into.nbytes)
        into[: len(data)] = data
        return len(data)
