"""A model's tensors under one set of names, whatever file they come from.

    embed, norm, head; layers.<i>.{attention_norm, q, k, v, o, q_norm, k_norm, mlp_norm, gate, up, down}; a bias is <matrix>.bias

Queries and keys are in the half-split rotary order everywhere; GGUF stores the llama family interleaved, so its rows are
reordered (convert_hf_to_gguf.py, LlamaModel.permute).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from shoal.errors import CorruptModel, UnsupportedModel, UserError
from shoal.models.families import FAMILIES
from shoal.models.families.read import spec_from_config, spec_from_gguf
from shoal.models.gguf_files import GgufFiles
from shoal.models.gguf_header import GgufHeader, unsupported
from shoal.models.matrix import Floats, StoredMatrix, floats
from shoal.models.safetensors_file import TYPES, SafetensorsFiles
from shoal.models.spec import LayerSpec, ModelSpec

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Weights(Protocol):
    """What an executor loads layers from."""

    @property
    def spec(self) -> ModelSpec: ...
    def matrix(self, name: str) -> StoredMatrix: ...
    def vector(self, name: str) -> Floats | None:
        """A norm or bias; None if the model has none."""
        ...

    def forget(self) -> None:
        """Releases what was read: the files' pages, not the weights made from them."""
        ...


class GgufWeights:
    def __init__(self, path: Path) -> None:
        self.file = GgufFiles(path)
        factors: list[float] = []
        if (freqs := self.file.tensor("rope_freqs.weight")) is not None:
            factors = floats(freqs.format, self.file.raw(freqs), freqs.shape[-1])[0].tolist()
        self.spec = spec_from_gguf(self.file.meta, self.file.shapes, factors, path)
        self.spec.check(path)
        self._family = FAMILIES[self.spec.family]
        for name in self.file.unusable.keys() & self._family.gguf.all(len(self.spec.layers)):
            self.file.tensor(name)  # which says what is wrong with it

    def forget(self) -> None:
        self.file.forget()

    def _order(self, name: str) -> NDArray[np.int64] | None:
        part = name.removesuffix(".bias").rsplit(".", 1)[-1]
        if not self._family.interleaved or part not in ("q", "k"):
            return None
        attention = layer_of(self.spec, name).attention
        heads, width = (attention.q_heads if part == "q" else attention.kv_heads), attention.head_dim
        return np.arange(heads * width).reshape(heads, width // 2, 2).transpose(0, 2, 1).reshape(-1).astype(np.int64)

    def matrix(self, name: str) -> StoredMatrix:
        stored = self._family.gguf.stored("embed" if name == "head" and self.spec.tied else name)
        tensor = self.file.tensor(stored)
        if tensor is None:
            raise CorruptModel(self.file.path, f"no tensor {stored}")
        _expect(self.file.path, stored, tensor.shape, matrix_shape(self.spec, name))
        return StoredMatrix(tensor.format, self.file.raw(tensor), tensor.shape[-1], self._order(name))

    def vector(self, name: str) -> Floats | None:
        tensor = self.file.tensor(self._family.gguf.stored(name))
        if tensor is None:
            return None
        _expect(self.file.path, name, tensor.shape, vector_shape(self.spec, name))
        values = floats(tensor.format, self.file.raw(tensor), tensor.shape[-1])[0]
        order = self._order(name) if name.endswith(".bias") else None
        return values if order is None else np.ascontiguousarray(values[order])


def check_header(header: GgufHeader, where: object) -> ModelSpec:
    """Refuses a model by the header of its only or first GGUF file, as GgufWeights would refuse the file.

    The first of several files may hold no tensors; the vocabulary is then counted from its tokens. Raises CorruptModel, UnsupportedModel.
    """
    shapes = dict(header.shapes)
    if header.meta.get("split.count", 1) > 1:
        shapes.setdefault("token_embd.weight", (len(header.meta.get("tokenizer.ggml.tokens", ())), 0))
    factors = [1.0] * shapes["rope_freqs.weight"][-1] if "rope_freqs.weight" in shapes else []
    spec = spec_from_gguf(header.meta, shapes, factors, where)
    spec.check(where)
    check_formats(header, spec, where)
    return spec


def check_formats(header: GgufHeader, spec: ModelSpec, where: object) -> None:
    """Refuses a file with a tensor that the model needs and that cannot be run. Raises UnsupportedModel."""
    if needed := header.unusable.keys() & FAMILIES[spec.family].gguf.all(len(spec.layers)):
        name = min(needed)
        raise unsupported(where, name, header.unusable[name])


def check_types(types: Mapping[str, str], spec: ModelSpec, where: object) -> None:
    """Refuses safetensors with a tensor that the model needs and that cannot be run. types: by name, as a header says. Raises UnsupportedModel."""
    needed = FAMILIES[spec.family].safetensors.all(len(spec.layers))
    if wrong := sorted(name for name, type in types.items() if name in needed and type not in TYPES):
        raise UnsupportedModel(f"{where}: tensor {wrong[0]} is {types[wrong[0]]}; supported are {', '.join(TYPES)}")


class SafetensorsWeights:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spec = open_spec(directory)
        self._names = FAMILIES[self.spec.family].safetensors
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(f"{directory}: no *.safetensors files")
        self._files = SafetensorsFiles(files)
        for name in self._files.unusable.keys() & self._names.all(len(self.spec.layers)):
            self._files.tensor(name)  # which says what is wrong with it

    def forget(self) -> None:
        self._files.forget()

    def matrix(self, name: str) -> StoredMatrix:
        stored = self._names.stored("embed" if name == "head" and self.spec.tied else name)
        tensor = self._files.tensor(stored)
        if tensor is None:
            raise CorruptModel(self.directory, f"no tensor {stored} in any *.safetensors")
        _expect(self.directory, stored, tensor.shape, matrix_shape(self.spec, name))
        return StoredMatrix(tensor.format, self._files.raw(tensor), tensor.shape[-1])

    def vector(self, name: str) -> Floats | None:
        tensor = self._files.tensor(self._names.stored(name))
        if tensor is None:
            return None
        _expect(self.directory, name, tensor.shape, vector_shape(self.spec, name))
        return floats(tensor.format, self._files.raw(tensor), tensor.shape[-1])[0]


def _expect(path: Path, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise CorruptModel(path, f"tensor {name} has shape {list(shape)} where the model's sizes say {list(wanted)}")


def layer_of(spec: ModelSpec, name: str) -> LayerSpec:
    """The layer that a tensor belongs to: 3 of 'layers.3.q'."""
    return spec.layers[int(name.split(".")[1])]


def matrix_shape(spec: ModelSpec, name: str) -> tuple[int, int]:
    """[n, k] of a matrix by its name here."""
    if name in ("embed", "head"):
        return (spec.vocabulary, spec.hidden)
    attention, width = layer_of(spec, name).attention, layer_of(spec, name).feed_forward.width
    return {
        "q": (attention.q_width, spec.hidden),
        "k": (attention.kv_width, spec.hidden),
        "v": (attention.kv_width, spec.hidden),
        "o": (spec.hidden, attention.q_width),
        "gate": (width, spec.hidden),
        "up": (width, spec.hidden),
        "down": (spec.hidden, width),
    }[name.rsplit(".", 1)[-1]]


def vector_shape(spec: ModelSpec, name: str) -> tuple[int]:
    """[n] of a norm or bias, by its name here."""
    if name.endswith(".bias"):
        return (matrix_shape(spec, name.removesuffix(".bias"))[0],)
    return (layer_of(spec, name).attention.head_dim if name.endswith(("q_norm", "k_norm")) else spec.hidden,)


def open_spec(directory: Path) -> ModelSpec:
    """The spec in config.json. Raises UserError, CorruptModel, UnsupportedModel."""
    config = directory / "config.json"
    try:
        spec = spec_from_config(cast("dict[str, Any]", json.loads(config.read_bytes().decode("utf-8-sig", errors="replace"))), directory)
    except FileNotFoundError:
        raise UserError(f"{directory}: no config.json; a model directory holds config.json, tokenizer.json and *.safetensors") from None
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise CorruptModel(config, f"not a model's configuration ({error})") from None
    spec.check(directory)
    return spec


def open_weights(path: Path) -> GgufWeights | SafetensorsWeights:
    """Opens a .gguf file or a model directory."""
    if path.is_dir():
        return SafetensorsWeights(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    return GgufWeights(path)
