"""Aligned slots."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.weights.slot_memory import ALIGNMENT, SlotMemory


def test_slots_are_aligned_and_apart():
    with SlotMemory(3, 5000) as memory:
        assert (memory.slot_bytes, memory.nbytes) == (8192, 3 * 8192)
        for slot in range(3):
            memory.view(slot)[:] = bytes([slot + 1]) * 8192
            array = np.frombuffer(memory.view(slot), np.uint8)
            assert array.ctypes.data % ALIGNMENT == 0
            del array
        assert [memory.view(slot)[8191] for slot in range(3)] == [1, 2, 3]
        assert not memory.view(0).readonly


def test_memory_in_use_is_not_given_back():
    memory = SlotMemory(1, 1)
    array = np.frombuffer(memory.view(0), np.uint8)
    with pytest.raises(BufferError):
        memory.close()
    del array
    memory.close()


@pytest.mark.parametrize(("slots", "size"), [(0, 1), (1, 0)])
def test_nothing_is_refused(slots: int, size: int):
    with pytest.raises(ValueError, match="at least 1"):
        SlotMemory(slots, size)
