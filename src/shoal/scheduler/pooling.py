"""The mean of hidden states, from sums over several rows."""

from __future__ import annotations

import struct


class Mean:
    """Sums are float64. So where a prompt was cut hardly ever shows in the float32 mean, and then only in its last bit."""

    def __init__(self) -> None:
        self._total: list[float] = []

    def add(self, total: bytes) -> None:
        """total: float64, little-endian; the same length each time."""
        values = struct.unpack(f"<{len(total) // 8}d", total)
        self._total = [a + b for a, b in zip(self._total, values, strict=True)] if self._total else list(values)

    def over(self, rows: int) -> bytes:
        """The mean over `rows` rows: float32, little-endian."""
        return struct.pack(f"<{len(self._total)}f", *(value / rows for value in self._total))
