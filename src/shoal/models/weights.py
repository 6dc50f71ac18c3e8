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
from shoal.models.gguf_files import GgufFiles
from shoal.models.gguf_header import GgufHeader, unsupported
from shoal.models.matrix import Floats, StoredMatrix, floats
from shoal.models.safetensors_file import TYPES, SafetensorsFiles
from shoal.models.spec import ModelSpec, spec_from_config, spec_from_gguf

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


_GGUF = {
    "embed": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_HF = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def _stored_name(name: str, table: dict[str, str], layer: str) -> str:
    """'layers.3.q.bias' → 'blk.3.attn_q.bias'."""
    parts = name.split(".")
    kind = "bias" if parts[-1] == "bias" else "weight"
    if kind == "bias":
        parts.pop()
    prefix = f"{layer}.{parts[1]}." if parts[0] == "layers" else ""
    return f"{prefix}{table[parts[-1]]}.{kind}"


def _names(spec: ModelSpec, table: dict[str, str], layer: str) -> set[str]:
    """All tensors that such a model may have, by their names in a file."""
    whole = ("embed", "norm", "head")
    inner = [f"layers.{i}.{part}" for i in range(spec.layers) for part in table if part not in whole]
    return {_stored_name(name + kind, table, layer) for name in (*whole, *inner) for kind in ("", ".bias")}


class GgufWeights:
    def __init__(self, path: Path) -> None:
        self.file = GgufFiles(path)
        factors: list[float] = []
        if (freqs := self.file.tensor("rope_freqs.weight")) is not None:
            factors = floats(freqs.format, self.file.raw(freqs), freqs.shape[-1])[0].tolist()
        self.spec = spec_from_gguf(self.file.meta, self.file.shapes, factors, path)
        self.spec.check(path)
        for name in self.file.unusable.keys() & _names(self.spec, _GGUF, "blk"):
            self.file.tensor(name)  # which reports what is wrong with it
        self._interleaved = self.spec.family == "llama"

    def forget(self) -> None:
        self.file.forget()

    def _order(self, name: str) -> NDArray[np.int64] | None:
        part = name.removesuffix(".bias").rsplit(".", 1)[-1]
        if not self._interleaved or part not in ("q", "k"):
            return None
        heads, width = (self.spec.q_heads if part == "q" else self.spec.kv_heads), self.spec.head_dim
        return np.arange(heads * width).reshape(heads, width // 2, 2).transpose(0, 2, 1).reshape(-1).astype(np.int64)

    def matrix(self, name: str) -> StoredMatrix:
        stored = _stored_name("embed" if name == "head" and self.spec.tied else name, _GGUF, "blk")
        tensor = self.file.tensor(stored)
        if tensor is None:
            raise CorruptModel(self.file.path, f"no tensor {stored}")
        _expect(self.file.path, stored, tensor.shape, matrix_shape(self.spec, name))
        return StoredMatrix(tensor.format, self.file.raw(tensor), tensor.shape[-1], self._order(name))

    def vector(self, name: str) -> Floats | None:
        tensor = self.file.tensor(_stored_name(name, _GGUF, "blk"))
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
    """Refuses a file with a tensor that the model needs but that cannot be run. Raises UnsupportedModel."""
    if needed := header.unusable.keys() & _names(spec, _GGUF, "blk"):
        name = min(needed)
        raise unsupported(where, name, header.unusable[name])


def check_types(types: Mapping[str, str], spec: ModelSpec, where: object) -> None:
    """Refuses safetensors with a tensor that the model needs but that cannot be run. types: by name, from a header. Raises
    UnsupportedModel."""
    needed = _names(spec, _HF, "model.layers")
    if wrong := sorted(name for name, type in types.items() if name in needed and type not in TYPES):
        raise UnsupportedModel(f"{where}: tensor {wrong[0]} is {types[wrong[0]]}; supported are {', '.join(TYPES)}")


class SafetensorsWeights:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spec = open_spec(directory)
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(f"{directory}: no *.safetensors files")
        self._files = SafetensorsFiles(files)
        for name in self._files.unusable.keys() & _names(self.spec, _HF, "model.layers"):
            self._files.tensor(name)  # which reports what is wrong with it

    def forget(self) -> None:
        self._files.forget()

    def matrix(self, name: str) -> StoredMatrix:
        stored = _stored_name("embed" if name == "head" and self.spec.tied else name, _HF, "model.layers")
        tensor = self._files.tensor(stored)
        if tensor is None:
            raise CorruptModel(self.directory, f"no tensor {stored} in any *.safetensors")
        _expect(self.directory, stored, tensor.shape, matrix_shape(self.spec, name))
        return StoredMatrix(tensor.format, self._files.raw(tensor), tensor.shape[-1])

    def vector(self, name: str) -> Floats | None:
        tensor = self._files.tensor(_stored_name(name, _HF, "model.layers"))
        if tensor is None:
            return None
        _expect(self.directory, name, tensor.shape, vector_shape(self.spec, name))
        return floats(tensor.format, self._files.raw(tensor), tensor.shape[-1])[0]


def _expect(path: Path, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise CorruptModel(path, f"tensor {name} has shape {list(shape)} where the model's sizes say {list(wanted)}")


def matrix_shape(spec: ModelSpec, name: str) -> tuple[int, int]:
    """[n, k] of a matrix, by its name here."""
    q, kv = spec.q_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {
        "embed": (spec.vocabulary, spec.hidden),
        "head": (spec.vocabulary, spec.hidden),
        "q": (q, spec.hidden),
        "k": (kv, spec.hidden),
        "v": (kv, spec.hidden),
        "o": (spec.hidden, q),
        "gate": (spec.intermediate, spec.hidden),
        "up": (spec.intermediate, spec.hidden),
        "down": (spec.hidden, spec.intermediate),
    }[name.rsplit(".", 1)[-1]]


def vector_shape(spec: ModelSpec, name: str) -> tuple[int]:
    """[n] of a norm or bias, by its name here."""
    if name.endswith(".bias"):
        return (matrix_shape(spec, name.removesuffix(".bias"))[0],)
    return (spec.head_dim if name.endswith(("q_norm", "k_norm")) else spec.hidden,)


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
