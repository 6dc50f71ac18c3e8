"""A matrix as stored in a file: raw rows of some format, mapped, not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_Q4 = {"q1_0", "q4_0", "q4_1", "q4_k", "tq1_0", "tq2_0", "mxfp4", "iq4_nl", "iq4_xs", "iq1_s", "iq2_xxs", "iq3_xxs", "iq3_s"}
FACTORED = {"q2_k", "q3_k", "q6_k", "iq1_m", "iq2_xs", "iq2_s"}
"""Formats with a scale for 16 weights that is a small whole number times a half for 256."""
BLOCKS = {
    **dict.fromkeys(_Q4 | FACTORED, "q4"),
    **dict.fromkeys(("q5_0", "q5_1", "q5_k"), "q5"),
    "q6_k": "q6",
    "q8_0": "q8",
}
"""Formats that the kernels execute block by block, as stored, and what they then are, by the bits of a code."""
FLOATS = {"f32", "f16", "bf16"}
FORMATS = sorted({*BLOCKS, *FLOATS, "nvfp4"})
"""Every format of a file that can be read."""
_INT4 = re.compile(r"([su])4g(\d+)")


def stored_as(format: str) -> str | None:
    """'q4', 'q5', 'q6' or 'q8' for a format that the kernels can execute as it is stored, 'int4' rows among them."""
    return "q4" if _INT4.fullmatch(format) else BLOCKS.get(format)


def stored_bytes(format: str, values: int) -> int:
    """Bytes that so many values take in a file."""
    if (int4 := _INT4.fullmatch(format)) is not None:
        return values // 2 + values // int(int4[2]) * (3 if int4[1] == "u" else 2)
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
    if format == "q1_0":  # which the gguf package knows, but does not dequantise
        cells = raw.reshape(-1, 18)
        scales = np.ascontiguousarray(cells[:, :2]).view(np.float16).astype(np.float32)
        signs = np.unpackbits(cells[:, 2:], axis=1, bitorder="little").astype(np.float32) * 2 - 1
        return (scales * signs).reshape(-1, k)
    if (int4 := _INT4.fullmatch(format)) is not None:
        return _int4_floats(raw, k, int(int4[2]), zeros=int4[1] == "u")
    return cast(Floats, cast(Any, quants).dequantize(raw, GGMLQuantizationType[format.upper()])).reshape(-1, k)


def _int4_floats(raw: NDArray[np.uint8], k: int, group: int, zeros: bool) -> Floats:
    """Rows as models/int4.py makes them."""
    cells = raw.reshape(-1, k // group, (3 if zeros else 2) + group // 2)
    scales = np.ascontiguousarray(cells[..., :2]).view(np.float16).astype(np.float32)
    codes = cells[..., 3 if zeros else 2 :]
    q = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], group).astype(np.float32)
    return (scales * (q - (cells[..., 2:3].astype(np.float32) if zeros else 8))).reshape(-1, k)
