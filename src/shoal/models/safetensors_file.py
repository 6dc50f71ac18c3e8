"""Maps the tensors of safetensors files, one or sharded.

The safetensors package reads bf16 only into frameworks that support it; NumPy does not, and a node has only NumPy. The format
is eight bytes of length, JSON, and the data: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from shoal.errors import CorruptModel, UnsupportedModel

log = structlog.get_logger()

TYPES = {"F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2), "U8": ("u8", 1), "I32": ("i32", 4)}
"""Formats and bytes of a value. The last two hold codes that some formats pack."""
_MAX_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class SafetensorsTensor:
    format: str
    shape: tuple[int, ...]
    file: Path
    offset: int


class SafetensorsFiles:
    """`tensors`: by name across the files, those that can be run; `unusable`: the types of the others. Raises CorruptModel for
    a truncated file or an invalid header."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.tensors: dict[str, SafetensorsTensor] = {}
        self.unusable: dict[str, str] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path in files:
            self._read_header(path)
        if self.unusable:
            log.warning(
                "the model's files have tensors that cannot be run; they matter only if the model needs them", tensors=self.unusable
            )

    def tensor(self, name: str) -> SafetensorsTensor | None:
        """None if there is no such tensor. Raises UnsupportedModel for one that cannot be run."""
        if (what := self.unusable.get(name)) is not None:
            raise UnsupportedModel(f"tensor {name} is {what}")
        return self.tensors.get(name)

    def _read_header(self, path: Path) -> None:
        size = path.stat().st_size
        if size < 8:
            raise CorruptModel(path, f"{size} bytes are no safetensors file", cut=True)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (length,) = struct.unpack_from("<Q", mapped, 0)
        if length > min(_MAX_HEADER, size - 8):
            raise CorruptModel(path, "the file is truncated inside its header", cut=True)
        try:
            header = cast("dict[str, Any]", json.loads(mapped[8 : 8 + length]))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                if entry["dtype"] not in TYPES:
                    self.unusable[name] = f"{entry['dtype']}; supported are {', '.join(TYPES)}"
                    continue
                format, width = TYPES[entry["dtype"]]
                shape = tuple(int(d) for d in entry["shape"])
                begin, end = (int(o) for o in entry["data_offsets"])
                if 8 + length + end > size:
                    raise CorruptModel(path, f"the file is truncated: tensor {name} lies beyond its end", cut=True)
                if min(shape, default=1) < 1 or end - begin != math.prod(shape) * width or begin < 0:
                    self.unusable[name] = f"{entry['dtype']} of the shape {list(shape)}, which is not that of its bytes {begin} to {end}"
                    continue
                self.tensors[name] = SafetensorsTensor(format, shape, path, 8 + length + begin)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptModel(path, f"the header is not what safetensors writes ({error})") from None
        self._maps[path] = mapped

    def forget(self) -> None:
        """Lets the system reclaim the pages read so far."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def raw(self, tensor: SafetensorsTensor) -> NDArray[np.uint8]:
        """uint8 [rows, bytes of a row], mapped."""
        width = dict(TYPES.values())[tensor.format]
        rows = math.prod(tensor.shape[:-1])
        flat = np.frombuffer(self._maps[tensor.file], np.uint8, rows * tensor.shape[-1] * width, tensor.offset)
        return flat.reshape(rows, tensor.shape[-1] * width)
