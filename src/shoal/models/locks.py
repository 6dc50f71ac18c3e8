"""One process does something while the others wait."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path

from shoal.file_lock import locked


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Generator[None]:
    """One process fetches; the others wait and find the result. Raises BlockingIOError if it would have to wait and `wait` is false."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not locked(file.fileno(), wait):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
        yield
