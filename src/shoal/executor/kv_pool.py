"""The KV blocks of a stage: one memory, laid out for the kernels, indexed by the block ids that the head hands out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.models.spec import ModelSpec
from shoal.native import BLOCK_TOKENS


def block_bytes(spec: ModelSpec, bf16: bool) -> int:
    """Bytes of one KV block in one layer."""
    return BLOCK_TOKENS * spec.kv_bytes(2 if bf16 else 4)


class KvPool:
    """memory: uint8 [layers, blocks, bytes], aligned to cache lines. Pages are taken from the system when first written."""

    def __init__(self, spec: ModelSpec, layers: int, blocks: int, bf16: bool) -> None:
        self.bf16 = bf16
        size = layers * blocks * block_bytes(spec, bf16)
        raw = np.zeros(size + 64, np.uint8)
        offset = -raw.ctypes.data % 64
        self.memory: NDArray[np.uint8] = raw[offset : offset + size].reshape(layers, blocks, -1)

    @property
    def blocks(self) -> int:
        return self.memory.shape[1]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks (from, to) in all layers."""
        for source, target in pairs:
            self.memory[:, target] = self.memory[:, source]
