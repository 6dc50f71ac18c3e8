"""Writes GGUF files: tiny models as convert_hf_to_gguf.py would, and single tensors of every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


_SCALES = {"q4_k": (0, 2), "q5_k": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "iq1_m": (), "nvfp4": ()}
"""Where the halves are in a block."""

_SIZES = {"iq3_xxs": 0.0003, "iq3_s": 0.0003, "iq4_xs": 0.00003, "q6_k": 0.00003}
"""The halves where their factors are large."""


def blocks(format: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random blocks of a format: rows of bytes. The halves that scale a block are small numbers."""
    rng = np.random.default_rng(seed)
    kind = GGMLQuantizationType[format.upper()]
    try:
        return quants.quantize(rng.standard_normal(shape, np.float32) * 0.1, kind).view(np.uint8).reshape(shape[0], -1)
    except NotImplementedError:  # as for K and IQ formats
        width, size = GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (shape[0] * shape[1] // width, size), np.uint8)
        small = np.frombuffer(np.float16(_SIZES.get(format, 0.002)).tobytes(), np.uint8)
        for at in _SCALES.get(format, (0,)):
            raw[:, at : at + 2] = small
        if format == "nvfp4":
            raw[:, :4] = 0x10 + raw[:, :4] % 8
        if format == "iq1_m":  # its scale lies in the upper nibbles of four numbers
            raw[:, 49:56:2] = raw[:, 49:56:2] & 15 | np.array([small[0] << 4, small[0] & 0xF0, small[1] << 4, small[1] & 0xF0], np.uint8)
        return raw.reshape(shape[0], -1)


def dequantised(format: str, raw: np.ndarray) -> np.ndarray:
    if format == "q1_0":  # gguf has no code for it: a half and 128 signs
        cells = raw.reshape(-1, 18)
        signs = np.where(np.unpackbits(cells[:, 2:], axis=1, bitorder="little"), np.float32(1), np.float32(-1))
        return (signs * np.ascontiguousarray(cells[:, :2]).view(np.float16)).astype(np.float32).reshape(len(raw), -1)
    return quants.dequantize(raw, GGMLQuantizationType[format.upper()])


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of convert_hf_to_gguf.py."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_model(path: Path, built: Any, arch: str, format: str = "f32", extra: dict[str, Any] | None = None, factors: Any = None) -> Path:
    """Writes a transformers model; its matrices become `format`, and `built` is given the values that the file then has."""
    config, writer = built.config, GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in (extra or {}).items():
        {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](f"{arch}.{key}", value)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for seed, (name, parameter) in enumerate(built.named_parameters()):
        module, kind = name.rsplit(".", 1)
        parts = module.split(".")
        layer = f"blk.{parts[2]}." if len(parts) > 3 else ""
        short = _NAMES[".".join(parts[3:]) if layer else module]
        order = heads.get(short) if arch == "llama" else None
        _put(writer, f"{layer}{short}.{kind}", parameter, format, order, seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def _put(writer: GGUFWriter, name: str, parameter: torch.Tensor, format: str, heads: int | None, seed: int) -> None:
    values = parameter.numpy().copy()
    if values.ndim == 1 or format == "f32":
        writer.add_tensor(name, _interleaved(values, heads) if heads else values)
        return
    raw = blocks(format, values.shape, seed)
    parameter.copy_(torch.from_numpy(dequantised(format, raw)))
    stored = _interleaved(raw, heads) if heads else raw
    plain = {"f16": np.float16, "bf16": None}.get(format, False)
    if plain is np.float16:
        writer.add_tensor(name, stored.view(np.float16))
    else:
        writer.add_tensor(name, stored, raw_dtype=GGMLQuantizationType[format.upper()])
