"""Files read around the page cache."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import mmap
import os
import random
import sys
from pathlib import Path

import pytest

from shoal.errors import WeightsUnreadable
from shoal.weights import direct_file
from shoal.weights.direct_file import DirectFile
from shoal.weights.reader import read_whole
from shoal.weights.slot_memory import ALIGNMENT, SlotMemory

DATA = random.Random(0).randbytes(10 * ALIGNMENT + 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "weights"
    with file.open("wb") as out:
        out.write(DATA)
        out.flush()
        os.fsync(out.fileno())
    return file


@pytest.fixture(params=["direct", "plain"])
def opened(request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch):
    if request.param == "plain":
        monkeypatch.setattr(direct_file, "_open_direct", lambda path: None)
    with DirectFile(path) as file:
        if request.param == "direct" and not file.direct:
            pytest.skip("no direct reads on this file system")
        yield file


@pytest.fixture
def memory():
    with SlotMemory(2, 4 * ALIGNMENT) as slots:
        yield slots


def cached_pages(path: Path) -> int:
    """As mincore(2) has it; to read with RWF_NOWAIT instead would begin read-ahead."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * (-(-len(mapped) // mmap.PAGESIZE)))()
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages)
        del start
    assert not failed
    return sum(page & 1 for page in pages)


def test_whole_blocks(opened: DirectFile, memory: SlotMemory):
    assert opened.nbytes == len(DATA)
    assert read_whole(opened, 2 * ALIGNMENT, memory.view(1)) is None
    assert bytes(memory.view(1)) == DATA[2 * ALIGNMENT : 6 * ALIGNMENT]


@pytest.mark.parametrize(("offset", "size"), [(1, 5000), (10 * ALIGNMENT, 100), (4096, 1)])
def test_any_other_range(opened: DirectFile, memory: SlotMemory, offset: int, size: int):
    assert read_whole(opened, offset, memory.view(0)[:size]) is None
    assert bytes(memory.view(0)[:size]) == DATA[offset : offset + size]


@pytest.mark.parametrize("offset", [8 * ALIGNMENT, 100 * ALIGNMENT])
def test_a_range_past_the_end(opened: DirectFile, memory: SlotMemory, offset: int):
    error = read_whole(opened, offset, memory.view(0))
    assert error is not None
    assert str(error).startswith(f"{opened.path}: it ends at {max(offset, len(DATA))}, where")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is cached")
def test_the_page_cache_stays_empty(opened: DirectFile, memory: SlotMemory):
    descriptor = os.open(opened.path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    if cached_pages(opened.path):
        pytest.skip("this file system keeps its files in memory")
    assert read_whole(opened, 4 * ALIGNMENT, memory.view(0)) is None
    assert cached_pages(opened.path) == 0


def test_a_file_that_was_cut(opened: DirectFile, memory: SlotMemory):
    os.truncate(opened.path, 5 * ALIGNMENT)
    for offset in (0, 4 * ALIGNMENT, 8 * ALIGNMENT):
        assert "changed while it was in use" in str(read_whole(opened, offset, memory.view(0)))


def test_a_file_that_was_written_to(opened: DirectFile, memory: SlotMemory):
    with opened.path.open("r+b") as file:
        file.write(b"other")
    os.utime(opened.path, ns=(0, 1))
    assert "changed while it was in use" in str(read_whole(opened, 0, memory.view(0)))


def test_a_file_that_was_replaced_or_removed_is_still_read(opened: DirectFile, memory: SlotMemory):
    opened.path.unlink()
    opened.path.write_bytes(bytes(len(DATA)))
    assert read_whole(opened, 0, memory.view(0)) is None
    assert bytes(memory.view(0)) == DATA[: 4 * ALIGNMENT]


def test_an_error_of_the_disk(opened: DirectFile, memory: SlotMemory, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    error = read_whole(opened, 0, memory.view(0))
    assert isinstance(error, WeightsUnreadable)
    assert "16384 bytes at 0 cannot be read: Input/output error" in str(error)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "weights")


@pytest.mark.skipif(sys.platform != "linux", reason="O_DIRECT")
def test_a_file_system_without_direct_reads(path: Path, memory: SlotMemory, monkeypatch: pytest.MonkeyPatch):
    really, descriptors = os.preadv, len(os.listdir("/proc/self/fd"))

    def refuses(file: int, *rest: object) -> int:
        if direct_reads(file):
            raise OSError(errno.EINVAL, "Invalid argument")
        return really(file, *rest)  # pyright: ignore[reportArgumentType]

    def direct_reads(file: int) -> bool:
        flags = next(line for line in Path(f"/proc/self/fdinfo/{file}").read_text().splitlines() if line.startswith("flags"))
        return bool(int(flags.split()[1], 8) & os.O_DIRECT)

    monkeypatch.setattr(os, "preadv", refuses)
    with DirectFile(path) as file:
        assert not file.direct
        assert read_whole(file, 0, memory.view(0)) is None
        assert bytes(memory.view(0)) == DATA[: 4 * ALIGNMENT]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_where_reads_have_no_offset(path: Path, memory: SlotMemory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("elsewhere", direct_file.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.DirectFile(path) as file:
        assert not file.direct
        assert read_whole(file, 4097, memory.view(0)) is None
    assert bytes(memory.view(0)) == DATA[4097 : 4097 + 4 * ALIGNMENT]
