"""Which files of a sharded model hold which layers, according to its index."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import msgspec

from shoal.models.families import FAMILIES
from shoal.models.families.tensor_names import WHOLE

_NAMES = [stored.names for family in FAMILIES.values() for stored in (family.gguf, family.safetensors)]
_LAYER = re.compile(rf"(?:{'|'.join(map(re.escape, sorted({p for names in _NAMES for p in names.layer_prefixes})))})\.(\d+)\.")
_STEMS = {
    name: {place.tensor.removesuffix(place.piece.suffix) for names in _NAMES for place in names.places(name)} for name in WHOLE
}  # a quantised matrix has other suffixes
_EVERY_LAYER = range(sys.maxsize)


class LayerIndex(msgspec.Struct):
    weight_map: dict[str, str]


def shard_files(index: bytes, layers: range, first: bool, last: bool) -> set[str]:
    """Names of the files that hold these layers, and the embedding or the head. Raises msgspec.DecodeError."""
    wanted = wanted_tensors(layers, first, last)
    return {file for tensor, file in msgspec.json.decode(index, type=LayerIndex).weight_map.items() if wanted(tensor)}


def every_shard(index: bytes) -> set[str]:
    """Names of the files with anything of the language model. Raises msgspec.DecodeError."""
    return shard_files(index, _EVERY_LAYER, first=True, last=True)


def wanted_tensors(layers: range, first: bool, last: bool) -> Callable[[str], bool]:
    """Tells whether a node with these layers needs a tensor, by the tensor's name in its file. Nobody needs what is beside the language
    model, such as the layers that read images."""

    def wanted(tensor: str) -> bool:
        if match := _LAYER.match(tensor):
            return int(match[1]) in layers
        stem = tensor.rpartition(".")[0]
        if stem in _STEMS["embed"]:
            return first or last  # a tied head is the embedding
        return tensor.startswith("rope_f") or (last and (stem in _STEMS["norm"] or stem in _STEMS["head"]))

    return wanted
