"""MXFP4 as gpt-oss's safetensors have it, in the rows that GGUF has: the kernels pack only those."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel
from shoal.models.matrix import StoredMatrix


def mxfp4(where: object, name: str, blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> StoredMatrix:
    """The matrix [n, 32 * blocks of a row]. Raises CorruptModel.

    blocks: [n, k/32, 16], two neighbours in a byte, the first in the low nibble, where GGUF has those that are 16 apart.
    scales: [n, k/32], powers of two.
    """
    if blocks.ndim != 3 or blocks.shape[2] != 16 or scales.shape != blocks.shape[:2] or not blocks.size:
        raise CorruptModel(where, f"{name} has blocks {list(blocks.shape)} and scales {list(scales.shape)}, which are no MXFP4")
    first, second = blocks[..., :8], blocks[..., 8:]  # of each, inputs 0 to 15 and 16 to 31
    out = np.empty((*scales.shape, 17), np.uint8)
    out[..., 0] = scales
    out[..., 1::2] = (first & 15) | (second << 4)
    out[..., 2::2] = (first >> 4) | (second & 0xF0)
    return StoredMatrix("mxfp4", out.reshape(len(out), -1), blocks.shape[1] * 32)
