"""A matrix as stored in a file: raw rows of some format, mapped, not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BLOCKS = {"q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q8_0"}
"""Formats that the kernels execute block by block, as stored."""
FLOATS = {"f32", "f16", "bf16"}
FORMATS = sorted(
    BLOCKS | FLOATS | {"q2_k", "q3_k", "q6_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "iq4_xs"}
)
"""Every format that can be read."""


def stored_bytes(format: str, values: int) -> int:
    """Bytes that so many values take in a file."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]]
    return values // block * size


@dataclass(frozen=True)
class StoredMatrix:
    """[n, k] weights. rows: uint8 [stored n, bytes of a row]; order: the stored row of each row, if they differ."""

    format: str
    rows: NDArray[np.uint8]
    k: int
    order: NDArray[np.int64] | None = None

    @property
    def n(self) -> int:
        return len(self.rows) if self.order is None else len(self.order)

    def pick(self, rows: NDArray[np.int64] | list[int] | slice) -> Floats:
        """Some rows as floats, [len(rows), k]."""
        raw = self.rows[rows] if self.order is None else self.rows[self.order[rows]]
        return floats(self.format, raw, self.k)

    def floats(self) -> Floats:
        """The whole matrix as floats, [n, k]: four bytes per weight, so only for one matrix at a time."""
        return self.pick(slice(None))


def floats(format: str, raw: NDArray[np.uint8], k: int) -> Floats:
    """Dequantises raw rows [n, bytes] to [n, k]."""
    raw = np.ascontiguousarray(raw)
    if format == "f32":
        return raw.view(np.float32).reshape(-1, k)
    if format == "f16":
        return raw.view(np.float16).reshape(-1, k).astype(np.float32)
    if format == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, k)
    return cast(Floats, cast(Any, quants).dequantize(raw, GGMLQuantizationType[format.upper()])).reshape(-1, k)
