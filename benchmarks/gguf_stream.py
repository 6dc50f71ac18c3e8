"""Writes GGUF files a tensor at a time, so that one larger than memory can be made, under their name only when they are whole."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """In values, rows first."""
    kind: GGMLQuantizationType
    make: Callable[[], Iterable[np.ndarray]]
    """Its parts in order, contiguous; together as many bytes as the shape and the kind say."""

    @property
    def nbytes(self) -> int:
        width, size = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // width * size


def write(path: Path, arch: str, metadata: Mapping[str, Any], tensors: list[Tensor]) -> Path:
    """metadata: keys in full; Python's types say which type each has in the file."""
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    writer = GGUFWriter(begun, arch)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        kinds[type(value)](key, value)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with begun.open("ab") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % writer.data_alignment))
            start = file.tell()
            for part in tensor.make():
                part.tofile(file)
            if file.tell() - start != tensor.nbytes:
                raise ValueError(f"{tensor.name} has {file.tell() - start} bytes where {tensor.nbytes} were announced")
        file.write(bytes(-file.tell() % writer.data_alignment))
    begun.rename(path)
    return path
