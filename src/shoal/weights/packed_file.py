"""Files of weights as they are executed, so that a part that is not in memory is one read and no work.

A file holds a part of a model, a layer or the output head, as units: what is always used together, and each expert. Layout:

    header   4096 bytes: magic, version, and where the index is
    units    each from a multiple of 4096 bytes on, which direct reads need, and filled up with zeros to one
    index    msgpack: for each unit its place, its digest, and its matrices and vectors by name

A matrix lies on a multiple of 64 bytes within its unit, as its runtime packed it; `form` is what the runtime needs to know it again.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from shoal.errors import DamagedPackedFile

PAGE = 4096
_LINE = 64
_MAGIC = b"shoalpkd"
LAYOUT = 2
"""Version of the layout: of the file, and of the matrices in it, which are alike for all instruction sets."""
_HEADER = struct.Struct("<8sIIQQQ")  # magic, version, unused; offset, size and digest of the index

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class PackedMatrix(msgspec.Struct, frozen=True, array_like=True):
    form: tuple[str, str, str, list[int], float, int, int, int]
    """See native/_kernels.pyi: Matrix."""
    at: int
    """Where it begins in its unit."""
    size: int


class PackedVector(msgspec.Struct, frozen=True, array_like=True):
    at: int
    count: int
    """Of floats."""


class PackedUnit(msgspec.Struct, frozen=True):
    """What is read at once."""

    at: int
    """Where it begins in the file."""
    size: int
    """A multiple of 4096."""
    digest: int
    matrices: dict[str, PackedMatrix]
    vectors: dict[str, PackedVector]

    def matrix(self, memory: Bytes, name: str) -> Bytes:
        """A matrix's bytes, where memory holds the unit."""
        found = self.matrices[name]
        return memory[found.at : found.at + found.size]

    def vector(self, memory: Bytes, name: str) -> Floats | None:
        """A copy, where memory holds the unit."""
        if (found := self.vectors.get(name)) is None:
            return None
        return memory[found.at : found.at + 4 * found.count].view(np.float32).copy()

    @property
    def sound(self) -> bool:
        """Whether all of its parts lie within it, where they may."""
        matrices = [(found.at, found.size) for found in self.matrices.values()]
        vectors = [(found.at, 4 * found.count) for found in self.vectors.values()]
        return all(at >= 0 and size >= 0 and not at % _LINE and at + size <= self.size for at, size in matrices + vectors)

    def verified(self, memory: Bytes) -> bool:
        """Whether memory holds what was written."""
        return xxhash.xxh3_64_intdigest(memory[: self.size].data) == self.digest


class Contents(msgspec.Struct, frozen=True):
    """Of a unit that is to be written."""

    matrices: Mapping[str, tuple[tuple[Any, ...], Bytes]]
    """By name: form and bytes."""
    vectors: Mapping[str, Floats]


def _up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


def placed(contents: Contents, at: int) -> tuple[PackedUnit, bytearray]:
    """A unit and its bytes. at: where it begins."""
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, PackedVector] = {}
    offset = 0
    for name, (form, data) in contents.matrices.items():
        matrices[name] = PackedMatrix(form, offset, len(data))
        offset = _up(offset + len(data), _LINE)
    for name, values in contents.vectors.items():
        vectors[name] = PackedVector(offset, len(values))
        offset = _up(offset + 4 * len(values), _LINE)
    memory = bytearray(_up(offset, PAGE))
    view = np.frombuffer(memory, np.uint8)
    for name, (_, data) in contents.matrices.items():
        view[matrices[name].at : matrices[name].at + matrices[name].size] = data
    for name, values in contents.vectors.items():
        view[vectors[name].at : vectors[name].at + 4 * len(values)] = np.ascontiguousarray(values, np.float32).view(np.uint8)
    return PackedUnit(at, len(memory), xxhash.xxh3_64_intdigest(memory), matrices, vectors), memory


def write(path: Path, units: Iterable[tuple[str, Contents]]) -> dict[str, PackedUnit]:
    """Writes a file; whoever opens it finds a complete one or none. Raises OSError, and leaves nothing behind then."""
    partial = path.with_name(f"{path.name}.{token_hex(8)}.partial")  # not of the process: in containers, two may have one number
    try:
        with partial.open("xb") as file:
            index = _write(file, units)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    return index


def _write(file: IO[bytes], units: Iterable[tuple[str, Contents]]) -> dict[str, PackedUnit]:
    file.write(bytes(PAGE))
    index: dict[str, PackedUnit] = {}
    at = PAGE
    for name, contents in units:
        unit, memory = placed(contents, at)
        file.write(memory)
        index[name] = unit
        at += unit.size
    encoded = msgspec.msgpack.encode(index)
    file.write(encoded)
    file.seek(0)
    file.write(_HEADER.pack(_MAGIC, LAYOUT, 0, at, len(encoded), xxhash.xxh3_64_intdigest(encoded)))
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what was written is read past the page cache
    return index


def read_index(path: Path) -> dict[str, PackedUnit]:
    """The units of a file. Raises DamagedPackedFile for what is no complete file of this version, OSError."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:8] != _MAGIC:
            raise DamagedPackedFile(path, "not a file of packed weights")
        _, version, _, at, size, digest = _HEADER.unpack(header)
        if version != LAYOUT:
            raise DamagedPackedFile(path, f"packed weights of version {version}, this is version {LAYOUT}")
        length = os.fstat(file.fileno()).st_size
        if at + size != length:
            raise DamagedPackedFile(path, f"packed weights of {length} bytes where {at + size} were written")
        file.seek(at)
        encoded = file.read(size)
    if xxhash.xxh3_64_intdigest(encoded) != digest:
        raise DamagedPackedFile(path, "the index of packed weights is damaged")
    try:
        index = msgspec.msgpack.decode(encoded, type=dict[str, PackedUnit])
    except msgspec.MsgspecError as error:
        raise DamagedPackedFile(path, f"the index of packed weights is not one: {error}") from error
    for name, unit in index.items():
        if unit.at < PAGE or unit.at % PAGE or unit.size < 0 or unit.size % PAGE or unit.at + unit.size > at or not unit.sound:
            raise DamagedPackedFile(path, f"the index of packed weights places {name} where it cannot be")
    return index
