"""Decides which process runs a model's batches."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.file_lock import locked


class Lease:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """None if another process has it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if locked(descriptor):
            return cls(descriptor)
        os.close(descriptor)
        return None

    def release(self) -> None:
        os.close(self._descriptor)
