"""The KV blocks of a node: one array per layer, laid out for the kernels, indexed by the block ids that the head assigns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.models.spec import LayerSpec, ModelSpec
from shoal.native import BLOCK_TOKENS
from shoal.observed.computing import ComputeParts
from shoal.placement.workload import KV_ELEMENT

ROUNDED = {KvType.Q8: 8, KvType.Q4: 4}
"""Bits of a number of the values, where numbers share scales; those of keys have 8."""
_GROUP, _SCALE = 32, 2
"""Numbers that share a scale, and its bytes; the last group of a vector is filled up."""


def token_bytes(vectors: Sequence[int], kv_type: KvType) -> int:
    """Bytes of what is kept of a token in a layer: keys and values of these widths, in turns."""
    if kv_type not in ROUNDED:
        return int(sum(vectors) * KV_ELEMENT[kv_type])
    keys, values = (sum(-(-width // _GROUP) for width in widths) for widths in (vectors[::2], vectors[1::2]))
    return keys * (_GROUP + _SCALE) + values * (_GROUP * ROUNDED[kv_type] // 8 + _SCALE)


def block_bytes(layer: LayerSpec, kv_type: KvType) -> int:
    """Bytes of one KV block in a layer."""
    return BLOCK_TOKENS * token_bytes(layer.attention.kv_vectors, kv_type)


class KvPool:
    """Blocks of each layer: uint8 [blocks, bytes], aligned to cache lines. The system allocates pages when they are first written."""

    def __init__(self, spec: ModelSpec, kv_type: KvType) -> None:
        self.kv_type = kv_type
        self._spec = spec
        self._blocks = 0
        self._layers: dict[int, NDArray[np.uint8]] = {}

    def open(self, blocks: int) -> None:
        """Begins with empty blocks, so many in each layer."""
        self._blocks, self._layers = blocks, {}

    def of(self, layer: int) -> NDArray[np.uint8]:
        """The blocks of a layer; a new layer gets empty ones."""
        if layer not in self._layers:
            size = self._blocks * block_bytes(self._spec.layers[layer], self.kv_type)
            raw = np.zeros(size + 64, np.uint8)
            offset = -raw.ctypes.data % 64
            self._layers[layer] = raw[offset : offset + size].reshape(self._blocks, -1)
        return self._layers[layer]

    def keep(self, layers: range) -> None:
        """Frees all other layers' blocks."""
        self._layers = {layer: memory for layer, memory in self._layers.items() if layer in layers}

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies blocks (from, to) in all layers."""
        for source, target in pairs:
            for memory in self._layers.values():
                memory[target] = memory[source]


class HostRuntime:
    """What runtimes have in common whose keys, values and activations are in the machine's memory."""

    def __init__(self, spec: ModelSpec, kv_type: KvType) -> None:
        self._pool = KvPool(spec, kv_type)

    @property
    def spent(self) -> ComputeParts:
        """Nothing is known, unless a runtime measures it."""
        return ComputeParts()

    def open(self, blocks: int) -> None:
        self._pool.open(blocks)

    def keep(self, layers: range) -> None:
        self._pool.keep(layers)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        self._pool.copy(pairs)

    def to_host(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return hidden
