"""Reads a GGUF file's header: metadata and the list of tensors, from the file's first bytes.

The gguf package's own reader makes a Python object per vocabulary entry, which takes seconds, and reports a truncated file with
whatever error NumPy raises. A node needs the sizes and its tensors at once, and a user whose download broke off needs a clear
message. Format: ggml/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import Any

import structlog
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.matrix import FORMATS

log = structlog.get_logger()

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_ITEMS = 1 << 26
_MAX_DEPTH = 4


class CutHeader(CorruptModel):
    """The bytes end inside the header."""

    def __init__(self, where: object) -> None:
        super().__init__(where, "the file is truncated inside its header", cut=True)


def unsupported(where: object, tensor: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: tensor {tensor} has {what}, which is not supported; supported are {', '.join(FORMATS)}")


@dataclass(frozen=True)
class GgufTensor:
    name: str
    format: str
    shape: tuple[int, ...]
    """Rows first."""
    row_bytes: int
    offset: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class GgufHeader:
    """`meta`: metadata by key (arrays as lists). `tensors`: by name, those that can be run; `unusable`: why the others cannot.
    `shapes`: of all tensors, rows first. `meta_bytes`: where the metadata ends."""

    def __init__(self, begin: bytes | mmap.mmap, size: int, where: object) -> None:
        """begin: the file's first bytes, or all of them. size: of the whole file. where: the name for errors.

        Raises CutHeader if more bytes are needed, CorruptModel, UnsupportedModel.
        """
        self._where, self._map, self._at = where, begin, 0
        self._unreadable: set[str] = set()
        try:
            self._read_header(size)
        except struct.error:
            raise CutHeader(where) from None
        del self._map
        if self._unreadable:
            log.warning(
                "text in the model's file is not UTF-8; what cannot be read is replaced", file=str(where), keys=sorted(self._unreadable)
            )
        if self.unusable:
            log.warning("the model's file has tensors that cannot be run; they matter only if the model needs them", tensors=self.unusable)

    def _take(self, format: str) -> Any:
        value = struct.unpack_from(format, self._map, self._at)[0]
        self._at += struct.calcsize(format)
        return value

    def _count(self, what: str, limit: int = _MAX_ITEMS) -> int:
        count = int(self._take("<Q"))
        if count > limit:
            raise CorruptModel(self._where, f"{count} {what} cannot be")
        return count

    def _string(self, of: str = "") -> str:
        """of: the key whose value it is; empty: it is a name itself."""
        length = self._count("bytes of a string", self._size)
        if self._at + length > len(self._map):
            raise CutHeader(self._where)
        raw = self._map[self._at : self._at + length]
        self._at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._unreadable.add(of or raw.decode(errors="replace"))
            return raw.decode(errors="replace")

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._take(_SCALARS[kind])
        if kind == _STRING:
            return self._string(key)
        if kind != _ARRAY or depth > _MAX_DEPTH:
            raise CorruptModel(self._where, f"metadata of unknown type {kind}")
        inner, count = int(self._take("<I")), self._count("array entries")
        if inner in _SCALARS:
            format = _SCALARS[inner]
            width = struct.calcsize(format)
            values = struct.unpack_from(f"<{count}{format[1]}", self._map, self._at)
            self._at += count * width
            return list(values)
        return [self._value(inner, key, depth + 1) for _ in range(count)]

    def _read_header(self, size: int) -> None:
        self._size = size
        if self._map[:4] != b"GGUF":
            raise CorruptModel(self._where, "this is no GGUF file")
        self._at = 4
        version = int(self._take("<I"))
        if version not in (2, 3):
            raise UnsupportedModel(f"{self._where}: GGUF version {version} is not supported; versions 2 and 3 are (little endian)")
        tensor_count, meta_count = self._count("tensors"), self._count("metadata entries")
        self.meta: dict[str, Any] = {}
        for _ in range(meta_count):
            key = self._string()
            self.meta[key] = self._value(int(self._take("<I")), key)
        self.meta_bytes = self._at
        listed: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(tensor_count):
            name = self._string()
            rank = int(self._take("<I"))
            if not 1 <= rank <= 4:
                raise CorruptModel(self._where, f"tensor {name} has {rank} dimensions")
            dims = tuple(int(self._take("<Q")) for _ in range(rank))[::-1]
            listed.append((name, dims, int(self._take("<I")), int(self._take("<Q"))))
        alignment = self.meta.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise CorruptModel(self._where, "the alignment cannot be")
        base = (self._at + alignment - 1) // alignment * alignment
        self.tensors: dict[str, GgufTensor] = {}
        self.unusable: dict[str, str] = {}
        self.shapes = {name: dims for name, dims, _, _ in listed}
        for name, dims, kind, offset in listed:
            try:
                quantisation = GGMLQuantizationType(kind)
            except ValueError:
                self.unusable[name] = f"the unknown type {kind}"
                continue
            format = quantisation.name.lower()
            if format not in FORMATS:
                self.unusable[name] = f"the type {format.upper()}"
                continue
            if (scale := name.removesuffix("weight") + "scale") in self.shapes:
                self.unusable[name] = f"a scale in a tensor of its own, {scale}"
                continue
            block, block_bytes = GGML_QUANT_SIZES[quantisation]
            if min(dims) < 1 or dims[-1] % block:
                raise CorruptModel(self._where, f"tensor {name} has rows of {dims[-1]} values, in blocks of {block}")
            tensor = GgufTensor(name, format, dims, dims[-1] // block * block_bytes, base + offset)
            if tensor.offset + tensor.rows * tensor.row_bytes > size:
                raise CorruptModel(self._where, f"the file is truncated: tensor {name} lies beyond its end", cut=True)
            self.tensors[name] = tensor
