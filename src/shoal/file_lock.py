"""Locks on open files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_BYTE = 0x7FFF_FFFE  # the byte locked on Windows, where others then cannot read it: one that no file has
_LOOK = 0.1  # seconds between attempts there


def lock_file(path: Path) -> int | None:
    """Makes the file if need be and locks it: a descriptor, to be closed by whoever wants the lock no more; None if another process has it.
    Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def locked(descriptor: int, wait: bool = False) -> bool:
    """Locks an open file unless another process has locked it. Returns whether it did.

    wait: wait until it succeeds, which it then always does. Raises OSError when waiting if the file system has no locks.
    """
    lock = _by_byte if fcntl is None else _whole
    try:
        lock(descriptor, wait)
    except OSError:
        if wait:
            raise
        return False
    return True


def _whole(descriptor: int, wait: bool) -> None:
    assert fcntl is not None
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _by_byte(descriptor: int, wait: bool) -> None:
    import msvcrt

    windows: Any = msvcrt
    while True:
        at = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        try:
            windows.locking(descriptor, windows.LK_NBLCK, 1)
            return
        except OSError as error:
            if not wait or error.errno not in (errno.EACCES, errno.EDEADLK):
                raise
        finally:
            os.lseek(descriptor, at, os.SEEK_SET)
        time.sleep(_LOOK)
