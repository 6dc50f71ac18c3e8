"""Aligned slots."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from shoal.weights.slot_memory import ALIGNMENT, HUGE_PAGE, SlotMemory


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


@pytest.mark.parametrize("size", [1, HUGE_PAGE - ALIGNMENT, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE // 2])
def test_all_of_it_lies_in_whole_huge_pages(size: int):
    """Of the mapping: where its last part had small pages, reads into it took twice as long."""
    for _ in range(8):  # mappings begin where the system wants
        with SlotMemory(1, size) as memory:
            array = np.frombuffer(memory.view(0), np.uint8)
            start = array.ctypes.data
            del array
            assert start % HUGE_PAGE == 0
            mapped = np.frombuffer(memory._memory, np.uint8)
            end = mapped.ctypes.data + len(mapped)
            del mapped
            assert start + -(-memory.nbytes // HUGE_PAGE) * HUGE_PAGE <= end


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_may_give_huge_pages():
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no huge pages to give")
    with SlotMemory(2, 3_000_000) as memory:
        address = np.frombuffer(memory.view(0), np.uint8).ctypes.data
        assert address % (2 << 20) == 0
        advised = flags_of_mapping(address)
        assert "hg" in advised
        assert "sh" not in advised, "shared memory gets none"


def flags_of_mapping(address: int) -> list[str]:
    """As proc(5) names them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if "-" in name:
            first, _, end = name.partition("-")
            inside = int(first, 16) <= address < int(end, 16)
        elif inside and name == "VmFlags:":
            return rest
    raise AssertionError("no such mapping")
