"""Files of packed weights give back what was written, or say what is wrong with them."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.errors import DamagedPackedFile
from shoal.weights import packed_file
from shoal.weights.packed_file import LAYOUT, PAGE, Bytes, Contents, PackedMatrix, PackedUnit, PackedVector, read_index, write

HEADER = struct.Struct("<8sIIQQQ")
Form = tuple[str, str, str, list[int], float, int, int, int]

forms = st.tuples(
    st.sampled_from(["f32", "q8", "q4", "q5", "q6"]),
    st.sampled_from(["halves", "factors"]),
    st.sampled_from(["none", "minimum", "zero"]),
    st.lists(st.integers(-128, 127), max_size=16),
    st.floats(allow_nan=False, width=32),
    st.integers(0, 255),
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 40),
)
memory = st.binary(min_size=0, max_size=9000).map(lambda data: np.frombuffer(data, np.uint8))
vectors = st.lists(st.floats(width=32, allow_nan=False), max_size=70).map(lambda values: np.array(values, np.float32))
names = st.text(min_size=1, max_size=12)
contents = st.builds(
    Contents, st.dictionaries(names, st.tuples(forms, memory), max_size=4), st.dictionaries(names, vectors, max_size=3)
).filter(lambda one: bool(one.matrices or one.vectors))
units = st.dictionaries(names, contents, min_size=1, max_size=4).map(lambda named: list(named.items()))


def filled(size: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def form(n: int = 16, k: int = 32) -> Form:
    return ("q8", "halves", "none", [], 1.0, 0, n, k)


SOME = [
    ("constant", Contents({"q": (form(), filled(5000)), "k": (form(), filled(64, 1))}, {"norm": np.arange(33, dtype=np.float32)})),
    ("expert 0", Contents({"gate": (form(), filled(4096, 2))}, {})),
    ("expert 1", Contents({"gate": (form(), filled(100, 3))}, {})),
]


def floats(unit: PackedUnit, data: Bytes, name: str) -> list[float]:
    values = unit.vector(data, name)
    assert values is not None
    return values.tolist()


def unit_of(path: Path, unit: PackedUnit) -> Bytes:
    return np.frombuffer(path.read_bytes()[unit.at : unit.at + unit.size], np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "layer.packed", SOME)
    return tmp_path / "layer.packed"


# What was written


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(units)
def test_every_unit_comes_back(tmp_path: Path, units: list[tuple[str, Contents]]) -> None:
    path = tmp_path / "some.packed"
    index = write(path, units)
    assert list(read_index(path)) == [name for name, _ in units]
    assert read_index(path) == index
    for name, contents in units:
        data = unit_of(path, index[name])
        assert index[name].verified(data)
        for part, (form, written) in contents.matrices.items():
            assert np.array_equal(index[name].matrix(data, part), written)
            assert tuple(index[name].matrices[part].form) == form
        for part, values in contents.vectors.items():
            assert floats(index[name], data, part) == values.tolist()
        assert index[name].vector(data, "none of these") is None


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(units)
def test_units_are_read_by_pages_and_matrices_lie_on_cache_lines(tmp_path: Path, units: list[tuple[str, Contents]]) -> None:
    at = PAGE
    for unit in write(tmp_path / "some.packed", units).values():
        assert (unit.at, unit.size % PAGE) == (at, 0)
        at += unit.size
        ends = 0
        for part in (*unit.matrices.values(), *unit.vectors.values()):
            assert part.at % 64 == 0
            assert part.at >= ends
            ends = part.at + (part.size if isinstance(part, PackedMatrix) else 4 * part.count)
        assert ends <= unit.size


def test_what_a_vector_gives_is_a_copy(path: Path) -> None:
    unit = read_index(path)["constant"]
    data = unit_of(path, unit).copy()
    norm = unit.vector(data, "norm")
    data[:] = 0
    assert norm is not None
    assert norm.tolist() == list(range(33))


def test_vectors_that_skip_values_in_memory(tmp_path: Path) -> None:
    values = np.arange(10, dtype=np.float32)[::2]
    index = write(tmp_path / "a", [("one", Contents({}, {"v": values}))])
    assert floats(index["one"], unit_of(tmp_path / "a", index["one"]), "v") == [0, 2, 4, 6, 8]


# Damage


def refused(path: Path) -> str:
    with pytest.raises(DamagedPackedFile) as error:
        read_index(path)
    assert str(path) in str(error.value)
    return str(error.value)


def changed(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def index_place(path: Path) -> tuple[int, int]:
    _, _, _, at, size, _ = HEADER.unpack(path.read_bytes()[: HEADER.size])
    return at, size


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path / "layer.packed")


@pytest.mark.parametrize("length", [0, 1, 7, 39])
def test_less_than_a_header(path: Path, length: int) -> None:
    os.truncate(path, length)
    assert "not a file of packed weights" in refused(path)


def test_cut_anywhere_else(path: Path) -> None:
    whole = path.stat().st_size
    for length in (HEADER.size, PAGE - 1, PAGE, PAGE + 1, whole // 2, whole - 1):
        os.truncate(path, length)
        assert f"packed weights of {length} bytes where {whole} were written" in refused(path)
        write(path, SOME)


def test_longer_than_it_was(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)
    assert "were written" in refused(path)


def test_another_kind_of_file(path: Path) -> None:
    changed(path, 0, b"GGUF")
    assert "not a file of packed weights" in refused(path)


def test_a_file_whose_header_was_not_written_yet(path: Path) -> None:
    changed(path, 0, bytes(PAGE))
    assert "not a file of packed weights" in refused(path)


def test_another_version(path: Path) -> None:
    changed(path, 8, struct.pack("<I", LAYOUT + 1))
    assert f"packed weights of version {LAYOUT + 1}, this is version {LAYOUT}" in refused(path)


def test_a_bit_of_the_header(path: Path) -> None:
    """In each byte that is read; the unused ones may be anything."""
    intact = path.read_bytes()[: HEADER.size]
    for at in (*range(12), *range(16, HEADER.size)):
        changed(path, at, bytes([intact[at] ^ 4]))
        refused(path)
        changed(path, at, intact[at : at + 1])
    read_index(path)


def test_a_bit_of_the_index(path: Path) -> None:
    at, size = index_place(path)
    intact = path.read_bytes()
    for byte in range(at, at + size):
        changed(path, byte, bytes([intact[byte] ^ 1]))
        assert "the index of packed weights is damaged" in refused(path)
        changed(path, byte, intact[byte : byte + 1])


def test_a_bit_of_a_unit_shows_when_it_is_read(path: Path) -> None:
    index = read_index(path)
    for unit in index.values():
        data = unit_of(path, unit).copy()
        for at in (0, unit.size // 2, unit.size - 1):
            data[at] ^= 128
            assert not unit.verified(data)
            data[at] ^= 128
        assert unit.verified(data)


def test_a_unit_of_another_place_shows(path: Path) -> None:
    index = read_index(path)
    assert not index["expert 0"].verified(unit_of(path, index["expert 1"]))


def test_a_unit_is_told_from_what_a_larger_slot_holds_after_it(path: Path) -> None:
    unit = read_index(path)["expert 1"]
    assert unit.verified(np.concatenate([unit_of(path, unit), filled(PAGE)]))


def lie(path: Path, index: Any) -> None:
    """Gives a file an index, with a right digest."""
    at, _ = index_place(path)
    encoded = index if isinstance(index, bytes) else msgspec.msgpack.encode(index)
    os.truncate(path, at)
    changed(path, at, encoded)
    changed(path, 0, HEADER.pack(b"shoalpkd", LAYOUT, 0, at, len(encoded), xxhash.xxh3_64_intdigest(encoded)))


@pytest.mark.parametrize("index", [b"", b"\xc1", b"\x93\x01", [1, 2], {"one": 3}, {"one": {"at": PAGE}}, {1: 2}], ids=repr)
def test_an_index_that_is_none(path: Path, index: Any) -> None:
    lie(path, index)
    assert "the index of packed weights is not one" in refused(path)


def matrix(at: int, size: int) -> dict[str, PackedMatrix]:
    return {"q": PackedMatrix(form(), at, size)}


@pytest.mark.parametrize(
    "unit",
    [
        PackedUnit(0, PAGE, 0, {}, {}),
        PackedUnit(-PAGE, PAGE, 0, {}, {}),
        PackedUnit(PAGE + 1, PAGE, 0, {}, {}),
        PackedUnit(PAGE, PAGE + 1, 0, {}, {}),
        PackedUnit(2 * PAGE, -PAGE, 0, {}, {}),
        PackedUnit(PAGE, 1 << 40, 0, {}, {}),
        PackedUnit(1 << 40, PAGE, 0, {}, {}),
        PackedUnit(PAGE, PAGE, 0, matrix(0, PAGE + 1), {}),
        PackedUnit(PAGE, PAGE, 0, matrix(PAGE, 64), {}),
        PackedUnit(PAGE, PAGE, 0, matrix(-64, 64), {}),
        PackedUnit(PAGE, PAGE, 0, matrix(0, -64), {}),
        PackedUnit(PAGE, PAGE, 0, matrix(32, 64), {}),
        PackedUnit(PAGE, PAGE, 0, {}, {"norm": PackedVector(0, 2000)}),
        PackedUnit(PAGE, PAGE, 0, {}, {"norm": PackedVector(0, -1)}),
        PackedUnit(PAGE, PAGE, 0, {}, {"norm": PackedVector(2, 1)}),
    ],
    ids=str,
)
def test_an_index_that_lies(path: Path, unit: PackedUnit) -> None:
    lie(path, {"one": unit})
    assert "places one where it cannot be" in refused(path)


# Writing


def failing(after: int, error: BaseException) -> Iterator[tuple[str, Contents]]:
    yield from SOME[:after]
    raise error


@pytest.mark.parametrize("after", [0, 1, 3])
def test_whatever_ends_the_writing_leaves_what_was_there(path: Path, after: int) -> None:
    before = path.read_bytes()
    for error in (ValueError("a matrix cannot be packed"), MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(path, failing(after, error))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


class Full:
    """A file on a disk that takes so many bytes more."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)


@pytest.mark.parametrize("room", [0, PAGE, PAGE + 9000, 5 * PAGE])
def test_a_full_disk_leaves_nothing(tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: Full(plain(self, *mode), room))
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path / "layer.packed", SOME)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_keep_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(packed_file.os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "layer.packed", SOME)
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "layer.packed", SOME)


def test_whoever_has_the_file_open_keeps_the_one_it_opened(path: Path) -> None:
    with path.open("rb") as open_before:
        write(path, SOME[1:])
        assert list(read_index(path)) == ["expert 0", "expert 1"]
        assert len(open_before.read()) > path.stat().st_size


def test_a_file_is_whole_whenever_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "layer.packed"

    def looked_at() -> Iterator[tuple[str, Contents]]:
        for unit in SOME:
            assert not path.exists()
            yield unit

    write(path, looked_at())
    assert len(read_index(path)) == len(SOME)


def test_two_writers_at_once(tmp_path: Path) -> None:
    """Of one process, as of two containers whose processes have the same number."""
    path, both = tmp_path / "layer.packed", threading.Barrier(2, timeout=60)

    def in_step() -> Iterator[tuple[str, Contents]]:
        for unit in SOME:
            both.wait()
            yield unit

    threads = [threading.Thread(target=write, args=(path, in_step())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = read_index(path)
    assert all(unit.verified(unit_of(path, unit)) for unit in index.values())
    assert list(tmp_path.iterdir()) == [path]
