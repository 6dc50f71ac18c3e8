"""Random rows of every format that the kernels pack, and what they hold according to gguf."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

from shoal.models.matrix import FORMATS

# Where the halves are that scale a block, and the powers of two between which they are random. The smallest is a subnormal half in
# the formats whose scales the kernels divide by a unit.
_HALVES = {
    "q1_0": ((0,), -10, -2), "q4_0": ((0,), -10, -2), "q4_1": ((0, 2), -10, -2), "q5_0": ((0,), -10, -2), "q5_1": ((0, 2), -10, -2),
    "q8_0": ((0,), -10, -2), "q2_k": ((80, 82), -10, -2), "q3_k": ((108,), -10, -2), "q4_k": ((0, 2), -8, -2), "q5_k": ((0, 2), -8, -2),
    "q6_k": ((208,), -10, -2), "iq1_s": ((0,), -14, -2), "iq2_xxs": ((0,), -14, -2), "iq2_xs": ((0,), -10, -2), "iq2_s": ((0,), -10, -2),
    "iq3_xxs": ((0,), -14, -2), "iq3_s": ((0,), -14, -2), "iq4_nl": ((0,), -10, -2), "iq4_xs": ((0,), -14, -2), "tq1_0": ((52,), -10, -2),
    "tq2_0": ((64,), -10, -2),
}  # fmt: skip


def stored_rows(format: str, n: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Bytes [n, bytes of a row]: random codes, with scales of sane sizes and either sign."""
    rng = np.random.default_rng(seed)
    if format in ("f32", "f16"):
        return rng.standard_normal((n, k)).astype(np.float32 if format == "f32" else np.float16).view(np.uint8)
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]]
    blocks = rng.integers(0, 256, (n * k // weights, size), np.uint8)
    if format == "bf16":
        blocks = (rng.standard_normal((n * k, 1)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    elif format == "mxfp4":
        blocks[:, 0] = rng.integers(104, 140, len(blocks))
    elif format == "nvfp4":
        blocks[:, :4] &= 0x77
    elif format == "iq1_m":  # in the upper nibbles of four numbers
        half = scales(rng, len(blocks), -10, -2).view(np.uint16)
        for i in range(4):
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (half >> (4 * i) << 4).astype(np.uint8)
    else:
        places, low, high = _HALVES[format]
        for at in places:
            blocks[:, at : at + 2] = scales(rng, len(blocks), low, high)[:, None].view(np.uint8)
    return blocks.reshape(n, -1)


def scales(rng: np.random.Generator, count: int, low: int, high: int) -> NDArray[np.float16]:
    return (2 ** rng.uniform(low, high, count) * rng.choice([-1, 1], count)).astype(np.float16)


def weights_of(format: str, rows: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """The weights [n, k]."""
    if format == "q1_0":  # gguf has no code for it: a half and 128 signs
        cells = rows.reshape(-1, 18)
        signs = np.where(np.unpackbits(cells[:, 2:], axis=1, bitorder="little"), np.float32(1), np.float32(-1))
        return (signs * np.ascontiguousarray(cells[:, :2]).view(np.float16)).astype(np.float32).reshape(-1, k)
    return np.asarray(quants.dequantize(rows, GGMLQuantizationType[format.upper()]), np.float32).reshape(-1, k)


assert _HALVES.keys() | {"f32", "f16", "bf16", "mxfp4", "nvfp4", "iq1_m"} == set(FORMATS)
