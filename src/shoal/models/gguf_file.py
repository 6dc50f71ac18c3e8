"""A GGUF file: its header, and its tensors, mapped into memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel
from shoal.models.gguf_header import GgufHeader, GgufTensor, unsupported


class GgufFile:
    """`meta`, `tensors`, `unusable`, `shapes`, `meta_bytes`: as in GgufHeader. Raises CorruptModel for a truncated file, UnsupportedModel."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise CorruptModel(path, f"{size} bytes are no GGUF file", cut=True)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = GgufHeader(self._map, size, path)
        self.meta, self.tensors, self.unusable, self.shapes = header.meta, header.tensors, header.unusable, header.shapes
        self.meta_bytes = header.meta_bytes

    def tensor(self, name: str) -> GgufTensor | None:
        """None if there is no such tensor. Raises UnsupportedModel for one that cannot be run."""
        if (what := self.unusable.get(name)) is not None:
            raise unsupported(self.path, name, what)
        return self.tensors.get(name)

    def forget(self) -> None:
        """Lets the system reclaim the pages read so far; they are read from the file again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The tensor's rows, mapped: uint8 [rows, row_bytes]."""
        flat = np.frombuffer(self._map, np.uint8, tensor.rows * tensor.row_bytes, tensor.offset)
        return flat.reshape(tensor.rows, tensor.row_bytes)
