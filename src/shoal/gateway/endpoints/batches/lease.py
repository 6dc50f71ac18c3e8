"""Decides which process runs a model's batches."""

from __future__ import annotations

import os
from pathlib import Path

from shoal.file_lock import lock_file


class Lease:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """None if another process has it."""
        descriptor = lock_file(path)
        return cls(descriptor) if descriptor is not None else None

    def release(self) -> None:
        os.close(self._descriptor)
