"""MXFP4 as Hugging Face stores it, brought into the rows of GGUF's format of that name, which the kernels read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def packed_rows(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """codes: [n, k / 32, 16], two a byte, neighbours in one; scales: [n, k / 32], powers of two. Gives [n, k / 32 * 17]: a scale, then
    the codes of the first 16 values of a block in the low halves of the bytes, those of the others in the high ones."""
    n, blocks, _ = codes.shape
    values = np.empty((n, blocks, 32), np.uint8)
    values[..., 0::2], values[..., 1::2] = codes & 15, codes >> 4
    packed = np.empty((n, blocks, 17), np.uint8)
    packed[..., 0] = scales
    packed[..., 1:] = values[..., :16] | (values[..., 16:] << 4)
    return packed.reshape(n, -1)
