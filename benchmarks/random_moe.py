"""Mixture-of-Experts GGUF files of a real model's shape and random weights, as large as theirs: what speed depends on, without a download.

The tokenizer and the vocabulary are those of a dense model's file. Matrices outside the experts are Q8_0. Each block's codes are uniform,
and its scale is such that a matrix leaves the size of its input as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from benchmarks import gguf_stream
from benchmarks.gguf_stream import Tensor
from shoal.folders import cache_dir

_KIND = GGMLQuantizationType
Format = Literal["q4_0", "q8_0"]
_RMS = {_KIND.Q4_0: 4.64, _KIND.Q8_0: 73.9}
"""Of a block's codes."""


@dataclass(frozen=True)
class Shape:
    arch: Literal["olmoe", "qwen3moe"]
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    chosen: int
    neurons: int
    """Of an expert."""
    rope_base: float = 10000.0
    eps: float = 1e-5
    skew: float = 0.0
    """How unevenly experts are used: the router's row of the expert of rank r is (r + 1) ** -skew as large; 0 is evenly."""
    embedding: float = 1.0
    """Of the embedding's values, as a factor. With 1 what the blocks add soon outweighs the token, so that all tokens choose much the same
    experts; with 1000 each token chooses its own."""


OLMOE = Shape("olmoe", layers=16, width=2048, heads=16, kv_heads=16, head_dim=128, experts=64, chosen=8, neurons=1024)
"""OLMoE-1B-7B: 4.1 GB in Q4_0."""

QWEN3 = Shape(
    "qwen3moe", layers=16, width=2048, heads=32, kv_heads=4, head_dim=128, experts=128, chosen=8, neurons=768, eps=1e-6, embedding=1000.0
)
"""A third of Qwen3-30B-A3B's layers: 6 GB in Q4_0. Its experts are used evenly."""
QWEN3_LOCAL = replace(QWEN3, skew=1.4)
"""The same with experts used about as unevenly as those of Qwen3-30B-A3B."""


def write(shape: Shape, vocabulary: Path, format: Format = "q4_0", folder: Path | None = None) -> Path:
    """The file, from the cache if it is there. vocabulary: a GGUF file. format: of the experts."""
    folder = folder or cache_dir() / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: value for name, value in asdict(shape).items() if (name, value) != ("embedding", 1.0)}
    named = json.dumps([1, told, vocabulary.name, vocabulary.stat().st_size])
    path = folder / f"random-{shape.arch}-{shape.layers}x{shape.experts}.{sha256(named.encode()).hexdigest()[:8]}.{format}.gguf"
    if path.exists():
        return path
    fields = GGUFReader(vocabulary).fields
    tokenizer = {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}
    tokens = len(tokenizer["tokenizer.ggml.tokens"])
    tensors = _tensors(shape, tokens, _KIND[format.upper()])
    return gguf_stream.write(path, shape.arch, {**_metadata(shape, tokens), **tokenizer}, tensors)


def _metadata(shape: Shape, tokens: int) -> dict[str, Any]:
    keys = {
        "vocab_size": tokens,
        "block_count": shape.layers,
        "context_length": 4096,
        "embedding_length": shape.width,
        "feed_forward_length": shape.neurons,
        "expert_feed_forward_length": shape.neurons,
        "expert_count": shape.experts,
        "expert_used_count": shape.chosen,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.freq_base": shape.rope_base,
    }
    return {"general.name": f"Random {shape.arch}", **{f"{shape.arch}.{key}": value for key, value in keys.items()}}


def _tensors(shape: Shape, tokens: int, format: GGMLQuantizationType) -> list[Tensor]:
    width, q, kv = shape.width, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = (q, kv) if shape.arch == "olmoe" else (shape.head_dim, shape.head_dim)
    sizes: list[tuple[str, tuple[int, ...], GGMLQuantizationType]] = [
        ("token_embd", (tokens, width), _KIND.Q8_0),
        ("output", (tokens, width), _KIND.Q8_0),
        ("output_norm", (width,), _KIND.F32),
    ]
    for layer in range(shape.layers):
        parts: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]] = {
            "attn_norm": ((width,), _KIND.F32),
            "ffn_norm": ((width,), _KIND.F32),
            "attn_q_norm": ((norms[0],), _KIND.F32),
            "attn_k_norm": ((norms[1],), _KIND.F32),
            "attn_q": ((q, width), _KIND.Q8_0),
            "attn_k": ((kv, width), _KIND.Q8_0),
            "attn_v": ((kv, width), _KIND.Q8_0),
            "attn_output": ((width, q), _KIND.Q8_0),
            "ffn_gate_inp": ((shape.experts, width), _KIND.F32),
            "ffn_gate_exps": ((shape.experts, shape.neurons, width), format),
            "ffn_up_exps": ((shape.experts, shape.neurons, width), format),
            "ffn_down_exps": ((shape.experts, width, shape.neurons), format),
        }
        sizes += [(f"blk.{layer}.{part}", *size) for part, size in parts.items()]
    return [
        Tensor(f"{name}.weight", size, kind, partial(_values, name, size, kind, shape, seed))
        for seed, (name, size, kind) in enumerate(sizes)
    ]


def _values(name: str, size: tuple[int, ...], kind: GGMLQuantizationType, shape: Shape, seed: int) -> Iterable[np.ndarray]:
    rng = np.random.Generator(np.random.SFC64(seed))
    if len(size) == 1:
        yield np.ones(size, np.float32)
    elif kind is _KIND.F32:
        rows = rng.standard_normal(size, np.float32) * np.float32(2 / np.sqrt(size[1]))
        yield rows * ((rng.permutation(size[0]) + 1.0) ** -shape.skew)[:, None].astype(np.float32)
    else:
        for _ in range(size[0] if len(size) == 3 else 1):
            yield _blocks(size[-2], size[-1], kind, rng, shape.embedding if name == "token_embd" else 1.0)


def _blocks(rows: int, columns: int, kind: GGMLQuantizationType, rng: np.random.Generator, times: float) -> np.ndarray:
    """[rows * blocks in a row, bytes of a block]"""
    width, size = GGML_QUANT_SIZES[kind]
    count = rows * columns // width
    raw = rng.integers(0, 1 << 64, -(-count * size // 8), np.uint64).view(np.uint8)[: count * size].reshape(count, size)
    scales = times * (0.75 + 0.5 * rng.random(count, np.float32)) / np.float32(np.sqrt(columns) * _RMS[kind])
    raw[:, :2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return raw
