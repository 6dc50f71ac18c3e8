"""Memory for the units that are held: slots of one size, aligned for reads that bypass the page cache."""

from __future__ import annotations

import ctypes
import mmap
import sys
from types import TracebackType
from typing import Self

ALIGNMENT = 4096
"""Bytes. Direct reads want file offsets, lengths and addresses that are multiples of the disk's block: 512 or 4096."""


def aligned(size: int) -> int:
    """`size` rounded up to whole blocks, in bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


HUGE_PAGE = 2 << 20
"""Bytes. Where memory comes in such pages, a disk gets a read in few long pieces: twice as fast at 1 MiB, for a fraction of the work."""


class SlotMemory:
    """One anonymous mapping cut into slots, in huge pages where the system has them to give (never counted on).

    Memory is taken from the machine when a slot is first written to, and kept until `close`.

    slots: how many, at least 1.
    size: bytes that each has to hold, at least 1; `slot_bytes` is that in whole blocks.
    Raises OSError if the mapping cannot be had.
    """

    def __init__(self, slots: int, size: int) -> None:
        if slots < 1 or size < 1:
            raise ValueError("slots, and bytes in each, are at least 1")
        self.slots = slots
        self.slot_bytes = aligned(size)
        self._memory = _private(-(-self.nbytes // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE)  # so that the last page is a huge one, too
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        whole = memoryview(self._memory)
        start = -_address(whole) % HUGE_PAGE
        self._views = [whole[at : at + self.slot_bytes] for at in range(start, start + self.nbytes, self.slot_bytes)]
        whole.release()

    @property
    def nbytes(self) -> int:
        """Of all slots. In huge pages the mapping may take up to one of them more."""
        return self.slots * self.slot_bytes

    def view(self, slot: int) -> memoryview:
        """[slot_bytes] writable bytes, at an address that is a multiple of `ALIGNMENT`. The same object for good."""
        return self._views[slot]

    def close(self) -> None:
        """Gives the memory back. Raises BufferError while something else than `view` refers to it, an array for instance."""
        for view in self._views:
            view.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _private(nbytes: int) -> mmap.mmap:
    """Python maps memory to be shared unless told otherwise, and shared memory gets no huge pages."""
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _address(view: memoryview) -> int:
    first = ctypes.c_char.from_buffer(view)
    return ctypes.addressof(first)
