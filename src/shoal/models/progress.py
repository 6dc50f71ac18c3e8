"""How far a fetch is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the bytes fetched and the total."""


def silent(done: int, total: int) -> None:
    """A progress function that does nothing."""
