"""How far a fetch has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes there will be."""


def silent(done: int, total: int) -> None:
    """The progress of someone who does not look."""
