"""Trained Mixture-of-Experts models, made of trained dense ones: their blocks are kept as they are stored, in other tensors.

A slice of an MLP's neurons is some of gate's and up's rows and the same columns of down; the slices' outputs add up to the MLP's. What a
slice's weight in the sum takes away is put into the scales of down's blocks, by powers of two, so that nothing is rounded:

| model | experts | chosen | answers |
|---|---|---|---|
| Mixtral, "identical" | 8, each the whole MLP | 2, by a random router | as the dense model |
| Mixtral, "perturbed" | 8, each the MLP with noise of its own | 2, by a random router | otherwise, in good English; a wrong expert shows |
| Mixtral, "slices" | 8 slices | all, each at 1/8 | as the dense model |
| Qwen2-MoE | `sets` times 8 slices of most of the MLP, and a shared expert of the rest at 1/2 | the 8 of the set that the router takes | as the dense model |

Qwen2-MoE's weights are not made to add up to one, so its router has one row for all experts of a set and is so large that a set takes all:
with one set the logits are the dense model's, with several they are but for the rare token that lies between two.
The gate of its shared expert is next to zero and not zero: there llama.cpp, which divides by it, has no number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, quants
from safetensors.numpy import save_file

from benchmarks import gguf_stream
from benchmarks.gguf_stream import Tensor
from shoal.folders import cache_dir
from shoal.text.backend import without_marks
from shoal.text.vocabulary import from_gguf

Mode = Literal["identical", "perturbed", "slices"]

_VERSION = 1
"""Of what is written: another one lets files of before be."""
_KIND = GGMLQuantizationType
_SCALES = {
    _KIND.Q4_0: (0,),
    _KIND.Q4_1: (0, 2),
    _KIND.Q8_0: (0,),
    _KIND.Q4_K: (0, 2),
    _KIND.Q5_K: (0, 2),
    _KIND.Q6_K: (208,),
}
"""Where in a block the halves lie that all of its values are multiples of."""


def mixtral(
    source: Path,
    mode: Mode = "identical",
    experts: int = 8,
    top: int = 2,
    noise: float = 0.05,
    folder: Path | None = None,
    layers: int = 0,
) -> Path:
    """A dense llama GGUF file as a Mixtral one. noise: of each block's scale, with "perturbed". layers: how many of the first; 0: all. Answers
    of a few layers are no English."""
    name = f"{source.stem}.mixtral-{mode}"
    parameters = [source.stat().st_size, experts, top, noise, *([layers] if layers else [])]
    return _cached(folder, name, parameters, lambda path: _mixtral(source, path, mode, experts, top, noise, layers))


def qwen2_moe(source: Path, sets: int = 2, noise: float = 0.0, folder: Path | None = None) -> Path:
    """A dense llama or qwen2 GGUF file as a Qwen2-MoE one. noise: of each block's scale in the sets after the first."""
    name = f"{source.stem}.qwen2moe-{sets}"
    return _cached(folder, name, [source.stat().st_size, noise], lambda path: _qwen2_moe(source, path, sets, noise))


def _cached(folder: Path | None, name: str, parameters: list[Any], make: Any) -> Path:
    folder = folder or cache_dir() / "upcycled"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{sha256(json.dumps([_VERSION, *parameters]).encode()).hexdigest()[:8]}.gguf"
    return path if path.exists() else make(path)


class _Dense:
    """A dense model's file, and parts of its matrices as they are stored. layers: how many of the first; 0: all."""

    def __init__(self, path: Path, layers: int = 0) -> None:
        self._reader = GGUFReader(path)
        self._tensors = {str(tensor.name): tensor for tensor in self._reader.tensors}
        self.metadata: dict[str, Any] = {
            name: field.contents() for name, field in self._reader.fields.items() if not name.startswith("GGUF.")
        }
        self.arch = self.metadata["general.architecture"]
        self.layers = layers or int(self.key("block_count"))
        self.width = int(self.key("embedding_length"))
        self.neurons = int(self.key("feed_forward_length"))

    def key(self, name: str) -> Any:
        return self.metadata[f"{self.arch}.{name}"]

    def renamed(self, arch: str, **changes: Any) -> dict[str, Any]:
        """The metadata of a file of another architecture; None leaves a key out."""
        own = {f"{arch}.{name}": value for name, value in changes.items() if value is not None}
        left = {"general.architecture", "general.quantization_version", *(f"{self.arch}.{name}" for name in changes)}
        kept = {key.replace(f"{self.arch}.", f"{arch}.", 1): value for key, value in self.metadata.items() if key not in left}
        return {**kept, **own}

    def whole(self, name: str, rename: str = "") -> Tensor:
        tensor = self._tensors[name]
        return Tensor(
            rename or name, tuple(int(n) for n in tensor.shape[::-1]), tensor.tensor_type, lambda: [np.ascontiguousarray(tensor.data)]
        )

    def names(self, layer: int) -> list[str]:
        """Of a layer's tensors beside the MLP's matrices."""
        mlp = [f"blk.{layer}.{name}.weight" for name in ("ffn_gate", "ffn_up", "ffn_down")]
        return [name for name in self._tensors if name.startswith(f"blk.{layer}.") and name not in mlp]

    def kind(self, name: str) -> GGMLQuantizationType:
        return self._tensors[name].tensor_type

    def slice(self, matrix: str, layer: int, start: int, stop: int, factor: float = 1.0) -> np.ndarray:
        """Some of the MLP's neurons: rows of gate and up, columns of down (whole blocks). Bytes, rows first. factor: of down's values."""
        tensor = self._tensors[f"blk.{layer}.{matrix}.weight"]
        if matrix != "ffn_down":
            return tensor.data[start:stop]
        width, size = GGML_QUANT_SIZES[tensor.tensor_type]
        if start % width or stop % width:
            raise ValueError(f"neurons {start} to {stop} are not whole blocks of {width}")
        return _scaled(tensor.data[:, start // width * size : stop // width * size], tensor.tensor_type, factor)

    def deinterleaved(self, name: str, heads: int) -> Tensor:
        """llama's q and k with the halves of each head one after the other, as every other architecture has them."""
        whole = self.whole(name)
        data = self._tensors[name].data
        rows = np.arange(len(data)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
        return Tensor(name, whole.shape, whole.kind, lambda: [np.ascontiguousarray(data[rows])])


def _scaled(rows: np.ndarray, kind: GGMLQuantizationType, factor: float | np.ndarray) -> np.ndarray:
    """factor: of all values, or of each block's [rows, blocks]"""
    _, size = GGML_QUANT_SIZES[kind]
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, size).copy()
    for at in _SCALES[kind]:
        halves = np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0]
        changed = (halves.astype(np.float32) * factor).astype(np.float16)
        blocks[:, :, at : at + 2] = changed[:, :, None].view(np.uint8)
    return blocks.reshape(len(rows), -1)


def _noisy(rows: np.ndarray, kind: GGMLQuantizationType, noise: float, seed: list[int]) -> np.ndarray:
    blocks = rows.shape[1] // GGML_QUANT_SIZES[kind][1]
    return _scaled(rows, kind, 1 + noise * np.random.default_rng(seed).standard_normal((len(rows), blocks), np.float32))


_MATRICES = ("ffn_gate", "ffn_up", "ffn_down")


def _floats(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, values.shape, _KIND.F32, lambda: [np.ascontiguousarray(values, np.float32)])


def _mixtral(source: Path, path: Path, mode: Mode, experts: int, top: int, noise: float, layers: int) -> Path:
    dense = _Dense(source, layers)
    if dense.arch != "llama":
        raise ValueError(f"{source} is a {dense.arch}, and Mixtral's architecture is llama")
    sliced = mode == "slices"
    neurons = dense.neurons // experts if sliced else dense.neurons
    chosen = experts if sliced else top
    rng = np.random.default_rng(0)

    def stacked(matrix: str, layer: int) -> Iterable[np.ndarray]:
        for e in range(experts):
            first = e * neurons if sliced else 0
            rows = dense.slice(matrix, layer, first, first + neurons, experts if sliced else 1)
            kind = dense.kind(f"blk.{layer}.{matrix}.weight")
            rows = _noisy(rows, kind, noise, [layer, _MATRICES.index(matrix), e]) if mode == "perturbed" else rows
            yield np.ascontiguousarray(rows)

    tensors = [dense.whole("token_embd.weight"), dense.whole("output_norm.weight")]
    for layer in range(dense.layers):
        tensors += [dense.whole(name) for name in dense.names(layer)]
        router = rng.standard_normal((experts, dense.width), np.float32) * np.float32(0 if sliced else 0.1)
        tensors += [_floats(f"blk.{layer}.ffn_gate_inp.weight", router)]
        tensors += _experts(dense, layer, experts, neurons, stacked)
    changes = {
        "block_count": dense.layers,
        "feed_forward_length": neurons,
        "expert_count": experts,
        "expert_used_count": chosen,
    }
    return gguf_stream.write(path, "llama", dense.renamed("llama", **changes), tensors)


def _qwen2_moe(source: Path, path: Path, sets: int, noise: float) -> Path:
    slices = 8
    dense = _Dense(source)
    block = GGML_QUANT_SIZES[dense.kind("blk.0.ffn_down.weight")][0]
    neurons = dense.neurons * 15 // 16 // slices // block * block or dense.neurons // (2 * slices) // block * block
    routed = slices * neurons
    shared = dense.neurons - routed
    rng = np.random.default_rng(0)
    heads = {"attn_q": int(dense.key("attention.head_count")), "attn_k": int(dense.key("attention.head_count_kv"))}

    def stacked(matrix: str, layer: int) -> Iterable[np.ndarray]:
        kind = dense.kind(f"blk.{layer}.{matrix}.weight")
        for e in range(sets * slices):
            first = e % slices * neurons
            rows = dense.slice(matrix, layer, first, first + neurons, slices)
            rows = _noisy(rows, kind, noise, [layer, _MATRICES.index(matrix), e]) if noise and e >= slices else rows
            yield np.ascontiguousarray(rows)

    embedding = dense.whole("token_embd.weight")
    tensors = [embedding, dense.whole("output_norm.weight")]
    tensors += [dense.whole("output.weight" if dense.arch == "qwen2" else "token_embd.weight", "output.weight")]
    for layer in range(dense.layers):
        at = f"blk.{layer}."
        tensors += [
            dense.deinterleaved(name, heads[part]) if dense.arch == "llama" and (part := name.split(".")[2]) in heads else dense.whole(name)
            for name in dense.names(layer)
        ]
        if dense.arch == "llama":
            tensors += [
                _floats(f"{at}{name}.bias", np.zeros(dense.whole(f"{at}{name}.weight").shape[0], np.float32))
                for name in ("attn_q", "attn_k", "attn_v")
            ]
        rows = rng.standard_normal((sets, dense.width), np.float32) * np.float32(5000)
        tensors += [_floats(f"{at}ffn_gate_inp.weight", np.repeat(rows, slices, axis=0))]
        gate = rng.standard_normal(dense.width, np.float32) * np.float32(1e-7)
        tensors += [_floats(f"{at}ffn_gate_inp_shexp.weight", gate)]
        tensors += _experts(dense, layer, sets * slices, neurons, stacked)
        for matrix in _MATRICES:
            rest = dense.slice(matrix, layer, routed, dense.neurons, 2)
            shape = (dense.width, shared) if matrix == "ffn_down" else (shared, dense.width)
            kind = dense.kind(f"{at}{matrix}.weight")
            tensors += [Tensor(f"{at}{matrix}_shexp.weight", shape, kind, lambda rest=rest: [np.ascontiguousarray(rest)])]
    changes = {
        "feed_forward_length": dense.neurons,
        "expert_count": sets * slices,
        "expert_used_count": slices,
        "expert_feed_forward_length": neurons,
        "expert_shared_feed_forward_length": shared,
        "vocab_size": None,
        "rope.dimension_count": None,
    }
    return gguf_stream.write(path, "qwen2moe", dense.renamed("qwen2moe", **changes), tensors)


def _experts(dense: _Dense, layer: int, experts: int, neurons: int, stacked: Any) -> list[Tensor]:
    def tensor(matrix: str) -> Tensor:
        shape = (experts, dense.width, neurons) if matrix == "ffn_down" else (experts, neurons, dense.width)
        kind = dense.kind(f"blk.{layer}.{matrix}.weight")
        return Tensor(f"blk.{layer}.{matrix}_exps.weight", shape, kind, lambda: stacked(matrix, layer))

    return [tensor(matrix) for matrix in _MATRICES]


# As Hugging Face directories.

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_EXPERTS = {
    "llama": {"ffn_gate_inp": "gate", "ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"},
    "qwen2moe": {
        "ffn_gate_inp": "gate",
        "ffn_gate_inp_shexp": "shared_expert_gate",
        **{f"ffn_{part}_exps": f"{part}_proj" for part in ("gate", "up", "down")},
        **{f"ffn_{part}_shexp": f"shared_expert.{part}_proj" for part in ("gate", "up", "down")},
    },
}


def checkpoint(file: Path, dtype: str = "float16") -> Path:
    """An upcycled GGUF file's model as the Hugging Face directory beside it, with the values that its blocks stand for.

    dtype: of the matrices; routers are float32.
    """
    folder = file.with_suffix(f".{dtype}")
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(exist_ok=True)
    reader = GGUFReader(file)
    meta: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    arch = meta["general.architecture"]
    heads = {"attn_q": meta[f"{arch}.attention.head_count"], "attn_k": meta[f"{arch}.attention.head_count_kv"]}
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        *layer, part, suffix = str(tensor.name).split(".")
        values = quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape[::-1]])
        if arch == "llama" and part in heads:
            values = values.reshape(heads[part], -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        values = np.ascontiguousarray(values, np.float32 if part.startswith("ffn_gate_inp") or values.ndim == 1 else np.dtype(dtype))
        at = f"model.layers.{layer[1]}." if layer else ""
        experts = f"{at}{'block_sparse_moe' if arch == 'llama' else 'mlp'}."
        if part in _NAMES:
            tensors[f"{at}{_NAMES[part]}.{suffix}"] = values
        elif part.endswith("_exps"):
            tensors |= {f"{experts}experts.{e}.{_EXPERTS[arch][part]}.{suffix}": expert for e, expert in enumerate(values)}
        else:
            tensors[f"{experts}{_EXPERTS[arch][part]}.{suffix}"] = values[None] if part.endswith("inp_shexp") else values
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text(without_marks(from_gguf(meta, file)))
    tokens = meta["tokenizer.ggml.tokens"]
    special = {f"{name}_token": tokens[meta[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "chat_template": meta["tokenizer.chat_template"]}))
    (folder / "config.json").write_text(json.dumps(_config(meta, arch, dtype), indent=1))
    return folder


def _config(meta: dict[str, Any], arch: str, dtype: str) -> dict[str, Any]:
    def key(name: str) -> Any:
        return meta[f"{arch}.{name}"]

    common = {
        "dtype": dtype,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": key("embedding_length"),
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "num_experts_per_tok": key("expert_used_count"),
        "rms_norm_eps": float(key("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(key("rope.freq_base")),
        "max_position_embeddings": key("context_length"),
        "hidden_act": "silu",
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
    }
    if arch == "llama":
        own: dict[str, Any] = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": key("expert_count")}
        return {**common, **own, "tie_word_embeddings": True, "sliding_window": None}
    own = {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": key("expert_count"), "norm_topk_prob": False}
    own |= {"moe_intermediate_size": key("expert_feed_forward_length"), "decoder_sparse_step": 1, "mlp_only_layers": []}
    own |= {"shared_expert_intermediate_size": key("expert_shared_feed_forward_length"), "tie_word_embeddings": False}
    return {**common, **own}
