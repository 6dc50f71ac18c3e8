"""Which files of a sharded model hold which layers, according to its index."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from shoal.models.families import FAMILIES

_EMBEDDINGS = {
    place.tensor for family in FAMILIES.values() for stored in (family.gguf, family.safetensors) for place in stored.names.places("embed")
}


class LayerIndex(msgspec.Struct):
    weight_map: dict[str, str]


def shard_files(index: bytes, layers: range, first: bool, last: bool) -> set[str]:
    """Names of the files that hold these layers, and the embedding or the head. Raises msgspec.DecodeError."""
    wanted = wanted_tensors(layers, first, last)
    return {file for tensor, file in msgspec.json.decode(index, type=LayerIndex).weight_map.items() if wanted(tensor)}


def every_shard(index: bytes) -> set[str]:
    """Names of all files of the model. Raises msgspec.DecodeError."""
    return set(msgspec.json.decode(index, type=LayerIndex).weight_map.values())


def wanted_tensors(layers: range, first: bool, last: bool) -> Callable[[str], bool]:
    """Tells whether a node with these layers needs a tensor, by the tensor's name in its file."""

    def wanted(tensor: str) -> bool:
        if match := re.match(r"(?:.*\.)?(?:layers|blocks|blk)\.(\d+)\.", tensor):
            return int(match[1]) in layers
        if tensor in _EMBEDDINGS:
            return first or last  # a tied head is the embedding
        return last or tensor.startswith("rope_f")

    return wanted
