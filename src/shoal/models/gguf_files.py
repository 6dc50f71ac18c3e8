"""A model in GGUF: one file, or the parts that llama.cpp's gguf-split writes (NAME-00001-of-00003.gguf and so on).

The first part has the metadata; each part has its own tensors. A node needs only the parts with its layers; an index that the
head writes describes the tensors of the others: {"weight_map": {tensor: part}, "shapes": {tensor: [rows, columns]}}.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel, UserError
from shoal.models.gguf_file import GgufFile
from shoal.models.gguf_header import GgufTensor

INDEX = "model.gguf.index.json"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class GgufIndex(msgspec.Struct):
    weight_map: dict[str, str]
    shapes: dict[str, list[int]]


def first_part(path: Path) -> Path:
    """The part with the metadata, if the path names another part."""
    match = _PART.fullmatch(path.name)
    return path if match is None else path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf")


def parts_of(path: Path) -> list[Path]:
    """All parts, found by the first one's name; only the path itself if it is not named like a part."""
    match = _PART.fullmatch(path.name)
    return [path] if match is None else [path.with_name(f"{match[1]}-{n:05}-of-{match[3]}.gguf") for n in range(1, int(match[3]) + 1)]


class GgufFiles:
    """Like GgufFile, for all parts of a model. Parts may be missing if there is an index in the same folder.

    Raises CorruptModel, UnsupportedModel, and UserError that names a missing part.
    """

    def __init__(self, path: Path) -> None:
        """path: the file, or the first part."""
        self.path = path
        first = GgufFile(path)
        self.meta = first.meta
        count = first.meta.get("split.count", 1)
        if type(count) is not int or count < 0:
            raise CorruptModel(path, f"split.count, the number of the model's parts, is {str(count)[:40]!r}")
        self.parts = [path] if count <= 1 else parts_of(path)
        if len(self.parts) != max(count, 1) or first.meta.get("split.no", 0) != 0:
            raise CorruptModel(path, f"it is one of {count} parts, which are named as gguf-split does: NAME-00001-of-{count:05}.gguf first")
        self._index: GgufIndex | None = None
        self._files = [first, *(GgufFile(part) for part in self.parts[1:] if self._is_here(part))]
        self._check(first)
        self._by_tensor = {name: file for file in self._files for name in file.shapes}
        self.tensors = {name: tensor for file in self._files for name, tensor in file.tensors.items()}
        self.unusable = {name: what for file in self._files for name, what in file.unusable.items()}
        elsewhere: dict[str, list[int]] = {} if self._index is None else self._index.shapes
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in elsewhere.items()}
        self.shapes |= {name: shape for file in self._files for name, shape in file.shapes.items()}

    def _is_here(self, part: Path) -> bool:
        if part.exists():
            return True
        try:
            self._index = self._index or msgspec.json.decode((self.path.parent / INDEX).read_bytes(), type=GgufIndex)
        except FileNotFoundError:
            raise UserError(f"{part}: this part of the model is missing; put all {len(self.parts)} into one folder") from None
        except msgspec.DecodeError as error:
            raise CorruptModel(self.path.parent / INDEX, f"no index ({error})") from None
        return False

    def _check(self, first: GgufFile) -> None:
        for file in self._files[1:]:
            at = self.parts.index(file.path)
            if (file.meta.get("split.no"), file.meta.get("split.count")) != (at, len(self.parts)):
                raise CorruptModel(file.path, f"this is not part {at + 1} of {len(self.parts)}")
        total, found = first.meta.get("split.tensors.count"), sum(len(file.shapes) for file in self._files)
        distinct = len({name for file in self._files for name in file.shapes})
        if distinct != found or (len(self.parts) > 1 and self._index is None and total != found):
            raise CorruptModel(self.path, f"the parts have {distinct} tensors where {total} should be: they are not of one model")

    def tensor(self, name: str) -> GgufTensor | None:
        """None if there is no such tensor. Raises UnsupportedModel for one that cannot be run, UserError for one in a missing part."""
        if (file := self._by_tensor.get(name)) is not None:
            return file.tensor(name)
        if self._index is not None and (part := self._index.weight_map.get(name)) is not None:
            raise UserError(f"{self.path.parent / part}: this part of the model is missing, and tensor {name} is in it")
        return None

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The tensor's rows, mapped: uint8 [rows, row_bytes]."""
        return self._by_tensor[tensor.name].raw(tensor)

    def forget(self) -> None:
        """Lets the system reclaim the pages read so far; they are read from the files again when needed."""
        for file in self._files:
            file.forget()

    def index(self, names: list[str]) -> bytes:
        """The index for parts with these names."""
        name_of = dict(zip(self.parts, names, strict=True))
        weight_map = {tensor: name_of[file.path] for tensor, file in self._by_tensor.items()}
        return msgspec.json.encode(GgufIndex(weight_map, {tensor: list(shape) for tensor, shape in self.shapes.items()}))
