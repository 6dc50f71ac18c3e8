"""What other programs read from this machine's disks while something is measured."""

from __future__ import annotations

import re
from pathlib import Path
from time import perf_counter

_DISKS, _OWN = Path("/proc/diskstats"), Path("/proc/self/io")
_SECTOR = 512
_WHOLE = re.compile(r"(vd|sd|xvd)[a-z]+|nvme\d+n\d+|mmcblk\d+")
"""Disks, without their partitions, whose reads count among theirs."""


class OtherReads:
    """Begins to count when it is made."""

    def __init__(self) -> None:
        self._began, self._at = _bytes(), perf_counter()

    def rate(self) -> float:
        """Bytes per second since the beginning; 0 where the system does not tell."""
        return max(_bytes() - self._began, 0) / (perf_counter() - self._at)


def _bytes() -> int:
    """Read by all others since the machine started."""
    try:
        disks = [line.split() for line in _DISKS.read_text().splitlines()]
        own = re.search(r"^read_bytes: (\d+)", _OWN.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return sum(int(disk[5]) * _SECTOR for disk in disks if _WHOLE.fullmatch(disk[2])) - (int(own[1]) if own else 0)
