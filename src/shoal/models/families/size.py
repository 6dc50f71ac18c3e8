"""A size as a file says it."""

from __future__ import annotations

from shoal.errors import CorruptModel

_MOST = 2**31 - 1


def size(value: object, key: str, where: object) -> int:
    """A whole number of at least 1. key, where: what the error names. Raises CorruptModel."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise CorruptModel(where, f"{key} is no whole number ({str(value)[:40]})")
    if not 1 <= value <= _MOST:
        raise CorruptModel(where, f"{key} cannot be {value}")
    return value
