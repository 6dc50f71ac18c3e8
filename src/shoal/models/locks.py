"""One process does a thing, the others wait."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Generator[None]:
    """One process fetches, the others wait and find the result. Raises BlockingIOError where it would have to wait and must not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
