"""The mean of hidden states that come in sums of several rows."""

from __future__ import annotations

import struct


class Mean:
    """Sums are float64, so that where a prompt was cut shows in the float32 mean hardly ever, and then in its last bit."""

    def __init__(self) -> None:
        self._total: list[float] = []

    def add(self, total: bytes) -> None:
        """total: float64, little-endian; as long as those before."""
        values = struct.unpack(f"<{len(total) // 8}d", total)
        self._total = [a + b for a, b in zip(self._total, values, strict=True)] if self._total else list(values)

    def over(self, rows: int) -> bytes:
        """float32, little-endian."""
        return struct.pack(f"<{len(self._total)}f", *(value / rows for value in self._total))
