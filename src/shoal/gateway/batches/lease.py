"""A lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def locked(descriptor: int) -> bool:
    """Locks an open file, unless somebody else has it. Windows has no such lock: there one process is to use a folder."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


class Lease:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """None where somebody else has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if locked(descriptor):
            return cls(descriptor)
        os.close(descriptor)
        return None

    def release(self) -> None:
        os.close(self._descriptor)
