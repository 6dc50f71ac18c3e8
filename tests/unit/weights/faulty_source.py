"""A source of weights that misbehaves as it is told."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from pathlib import Path


class FaultySource:
    """Bytes in memory. Offsets in `broken` give EIO, those in `held` wait for `release`, and no read gives more than `at_once` bytes."""

    def __init__(self, data: bytes, at_once: int | None = None, broken: Sequence[int] = (), held: Sequence[int] = ()) -> None:
        self.path = Path("weights")
        self.data = data
        self.at_once = at_once
        self.broken = set(broken)
        self.gates = {offset: threading.Event() for offset in held}
        self.begun = {offset: threading.Event() for offset in held}

    def release(self, offset: int) -> None:
        self.gates[offset].set()

    def read_into(self, offset: int, into: memoryview) -> int:
        if offset in self.gates:
            self.begun[offset].set()
            self.gates[offset].wait()
        if offset in self.broken:
            raise OSError(errno.EIO, "Input/output error")
        part = self.data[offset : offset + min(into.nbytes, self.at_once or into.nbytes)]
        into[: len(part)] = part
        return len(part)
