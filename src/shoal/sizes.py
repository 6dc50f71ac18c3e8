"""Sizes in bytes, formatted for people."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """A size for people: '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
