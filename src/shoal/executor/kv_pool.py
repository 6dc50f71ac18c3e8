"""The KV blocks of a node: one array per layer, laid out for the kernels, indexed by the block ids that the head assigns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.models.spec import ModelSpec
from shoal.native import BLOCK_TOKENS


def block_bytes(spec: ModelSpec, bf16: bool) -> int:
    """Bytes of one KV block in one layer."""
    return BLOCK_TOKENS * spec.common.attention.kv_bytes(2 if bf16 else 4)


class KvPool:
    """Blocks of each layer: uint8 [blocks, bytes], aligned to cache lines. The system allocates pages when they are first written."""

    def __init__(self, spec: ModelSpec, blocks: int, bf16: bool) -> None:
        self.bf16 = bf16
        self.blocks = blocks
        self._bytes = block_bytes(spec, bf16)
        self._layers: dict[int, NDArray[np.uint8]] = {}

    def of(self, layers: range) -> list[NDArray[np.uint8]]:
        """The blocks of some layers; new layers get empty ones."""
        for layer in layers:
            if layer not in self._layers:
                raw = np.zeros(self.blocks * self._bytes + 64, np.uint8)
                offset = -raw.ctypes.data % 64
                self._layers[layer] = raw[offset : offset + self.blocks * self._bytes].reshape(self.blocks, -1)
        return [self._layers[layer] for layer in layers]

    def keep(self, layers: range) -> None:
        """Frees all other layers' blocks."""
        self._layers = {layer: memory for layer, memory in self._layers.items() if layer in layers}

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks (from, to) in all layers."""
        for source, target in pairs:
            for memory in self._layers.values():
                memory[target] = memory[source]
