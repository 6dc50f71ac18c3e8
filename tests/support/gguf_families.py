"""Tiny transformers models of today's families as the GGUF files that llama.cpp's converter writes of them.

A family is its architecture, the keys it has beyond those of all, and what is done to the tensors of its checkpoint before they get the names
that the gguf package maps theirs to.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from safetensors.numpy import load_file

from tests.support import tiny, vocabularies

Tensors = dict[str, np.ndarray]
Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    arch: str
    keys: Callable[[Config], dict[str, Any]] = lambda config: {}
    """What it has beyond, or other than, the keys of all; None for one that it lacks."""
    tensors: tuple[Callable[[Tensors, Config], Tensors], ...] = ()
    interleaved: bool = False
    """Whether the two halves of each head of q and k are interleaved."""


def write(
    built: Any,
    path: Path,
    *,
    format: str = "f32",
    layout: str = "",
    tokenizer: Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a transformers model as one GGUF file.

    format: of the matrices of layers that have rows of whole blocks (routers and those of latent attention stay f32); where it is not f32,
    `built` is given the values that the file then has. "mxfp4" is of experts alone, as gpt-oss's files are.
    layout: "fused experts" (gate and up in one tensor, as newer files may), "expert tensors" (one per expert, as Mixtral's files before April
    2024), "kv_b" (DeepSeek's files before the split into k_b and v_b, with the keys that they had).
    keys: changes of keys, after the architecture's name; None leaves one out. tokenizer: metadata in full, e.g. `vocabulary(size)`.
    """
    family, config = FAMILIES[built.config.model_type], built.config.to_dict()
    if format != "f32":
        _round(built, format)
    with tempfile.TemporaryDirectory() as folder:
        tiny.saved(built, Path(folder))
        tensors: Tensors = {name: values for file in Path(folder).glob("*.safetensors") for name, values in load_file(file).items()}
    if "text_config" in config:
        config, tensors = config["text_config"], _language(tensors)
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    metadata = {**_common(config), **_rope(config), **family.keys(config)}
    if layout == "kv_b":
        nope, rope, heads = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["num_attention_heads"]
        metadata |= {"attention.key_length": nope + rope, "attention.value_length": config["v_head_dim"]}
        metadata |= {"attention.head_count_kv": heads, "attention.key_length_mla": None, "attention.value_length_mla": None}
    for step in family.tensors:
        tensors = step(tensors, config) if step is not _split_kv_b or layout != "kv_b" else tensors
    if family.interleaved:
        tensors = _interleave(tensors, config)
    named = _named(_stack_experts(tensors), family.arch, metadata["block_count"])
    named = {"fused experts": _fuse_experts, "expert tensors": _part_experts}.get(layout, lambda tensors: tensors)(named)

    writer = GGUFWriter(path, family.arch)
    for key, value in {**metadata, **(keys or {})}.items():
        if value is not None:
            add(writer, f"{family.arch}.{key}", value)
    for key, value in (tokenizer or {}).items():
        add(writer, key, value)
    for name, values in named.items():
        if (kind := _kind(name, values.shape, format)) is None:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        else:
            raw = quants.quantize(np.ascontiguousarray(values, np.float32), kind)
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(size: int) -> dict[str, Any]:
    """A tokenizer's metadata with so many tokens: at least the bytes and a few merges."""
    spare = size - len(vocabularies.byte_level()["tokenizer.ggml.tokens"])
    return vocabularies.byte_level(special=["<|im_start|>", *(f"<|{i}|>" for i in range(spare)), "<|im_end|>"])


# Keys.

_KEYS = {
    "block_count": ("num_hidden_layers", "n_layers"),
    "context_length": ("max_position_embeddings", "max_seq_len"),
    "embedding_length": ("hidden_size", "d_model"),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
}
_SCORES = {"softmax": 1, "sigmoid": 2}


def _common(config: Config) -> dict[str, Any]:
    found = {key: next((config[name] for name in names if config.get(name) is not None), None) for key, names in _KEYS.items()}
    return {**found, "expert_gating_func": _SCORES.get(config.get("scoring_func") or "")}


def _rope(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    own = rope.get("full_attention", rope)
    keys = {"rope.freq_base": own["rope_theta"], "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta")}
    kind = own["rope_type"]
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": own["factor"]}
    if kind == "yarn":
        keys |= {"rope.scaling.original_context_length": own["original_max_position_embeddings"]}
        keys |= {f"rope.scaling.yarn_{name}": own.get(name) for name in ("beta_fast", "beta_slow")}
        keys |= {"rope.scaling.yarn_attn_factor": own.get("attention_factor")}
    return keys


def _head_dim(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _llama(config: Config) -> dict[str, Any]:
    return {"vocab_size": config["vocab_size"], "rope.dimension_count": _head_dim(config)}


def _granite(config: Config) -> dict[str, Any]:
    """Its converter leaves the width of a head to be the embedding's over the heads."""
    return {
        "vocab_size": config["vocab_size"],
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
        "expert_shared_feed_forward_length": config.get("shared_intermediate_size"),
    }


def _granite_4(config: Config) -> dict[str, Any]:
    """Its converter has an architecture of its own only for layers that are not attention."""
    without = ("expert_count", "expert_used_count", "expert_shared_feed_forward_length")
    return {**_granite(config), **dict.fromkeys(without), "feed_forward_length": config["shared_intermediate_size"]}


def _deepseek(config: Config) -> dict[str, Any]:
    """Latent attention is one KV head as wide as the latent and the rotated part."""
    return {
        "vocab_size": config["vocab_size"],
        "attention.head_count_kv": 1,
        "leading_dense_block_count": _dense_first(config),
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": config["kv_lora_rank"],
        "attention.key_length": config["kv_lora_rank"] + config["qk_rope_head_dim"],
        "attention.value_length": config["kv_lora_rank"],
        "attention.key_length_mla": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": config["qk_rope_head_dim"],
        **_shared_experts(config),
        "expert_weights_norm": config["norm_topk_prob"] or None,
    }


def _dense_first(config: Config) -> int:
    return config["mlp_layer_types"].count("dense") if "mlp_layer_types" in config else config["first_k_dense_replace"]


def _shared_experts(config: Config) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config["norm_topk_prob"],
    }


def _partial_rotary(config: Config) -> dict[str, Any]:
    return {"rope.dimension_count": int(_head_dim(config) * config["rope_parameters"]["partial_rotary_factor"])}


def _glm4_moe(config: Config) -> dict[str, Any]:
    return {
        **_partial_rotary(config),
        **_shared_experts(config),
        "block_count": config["num_hidden_layers"] + config["num_nextn_predict_layers"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_gating_func": _SCORES["sigmoid"],
        "nextn_predict_layers": config["num_nextn_predict_layers"],
    }


def _qwen_moe(config: Config) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


def _gpt_oss(config: Config) -> dict[str, Any]:
    return {"attention.sliding_window": config["sliding_window"], "expert_feed_forward_length": config["intermediate_size"]}


def _minimax(config: Config) -> dict[str, Any]:
    return {"expert_feed_forward_length": config["intermediate_size"], **_partial_rotary(config)}


def _dbrx(config: Config) -> dict[str, Any]:
    attention, experts = config["attn_config"], config["ffn_config"]
    return {
        "feed_forward_length": experts["ffn_hidden_size"],
        "attention.head_count_kv": attention["kv_n_heads"],
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.layer_norm_rms_epsilon": None,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.clamp_kqv": attention["clip_qkv"],
        "expert_count": experts["moe_num_experts"],
        "expert_used_count": experts["moe_top_k"],
    }


def _gemma2(config: Config) -> dict[str, Any]:
    """Its files have no base of the rotation: it is 10,000."""
    return {
        "rope.freq_base": None,
        "attention.sliding_window": config["sliding_window"],
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
    }


def _glm(config: Config) -> dict[str, Any]:
    return {**_partial_rotary(config), "attention.key_length": None, "attention.value_length": None}


def _ernie_moe(config: Config) -> dict[str, Any]:
    """Its converter makes the width of what every row takes of two sizes whose quotient it is."""
    return {
        "expert_count": config["moe_num_experts"],
        "expert_used_count": config["moe_k"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["moe_num_shared_experts"],
        "expert_shared_feed_forward_length": config["intermediate_size"] // config["num_key_value_heads"],
        "interleave_moe_layer_step": config["moe_layer_interval"],
        "leading_dense_block_count": config["moe_layer_start_index"],
    }


def _dots1(config: Config) -> dict[str, Any]:
    return {
        **_shared_experts(config),
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_gating_func": _SCORES["sigmoid"],
    }


def _gemma3(config: Config) -> dict[str, Any]:
    return {"attention.sliding_window": config["sliding_window"], "final_logit_softcapping": config.get("final_logit_softcapping")}


def _phi3(config: Config) -> dict[str, Any]:
    """The factor of attention in long contexts is transformers' own."""
    rope, context, original = config["rope_parameters"], config["max_position_embeddings"], config["original_max_position_embeddings"]
    scale = context / original
    factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    longrope = rope["rope_type"] == "longrope"
    return {
        "rope.dimension_count": int(rope["partial_rotary_factor"] * config["hidden_size"]) // config["num_attention_heads"],
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": factor if longrope else None,
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.sliding_window": config.get("sliding_window") or 0,
    }


def _windows(config: Config) -> dict[str, Any]:
    if not config.get("sliding_window"):
        return {}
    pattern = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {"attention.sliding_window": config["sliding_window"], "attention.sliding_window_pattern": pattern}


def _cohere2(config: Config) -> dict[str, Any]:
    return {
        "vocab_size": config["vocab_size"],
        "logit_scale": config["logit_scale"],
        "attention.sliding_window": config.get("sliding_window"),
        "rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "rope.scaling.type": "none",
    }


def add(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)


# Tensors.


def _language(tensors: Tensors) -> Tensors:
    """Those of the language model, where images can be given to it as well, under the names that they have without them."""
    named = {name.replace("model.language_model.", "model.").replace("language_model.", ""): values for name, values in tensors.items()}
    return {name: values for name, values in named.items() if name.startswith(("model.layers", "model.embed", "model.norm", "lm_head"))}


def _interleave(tensors: Tensors, config: Config) -> Tensors:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def rows(name: str, values: np.ndarray) -> np.ndarray:
        if (count := heads.get(name.split(".")[-2])) is None:
            return values
        return values.reshape(count, 2, len(values) // count // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)

    return {name: rows(name, values) for name, values in tensors.items()}


def _stack_experts(tensors: Tensors) -> Tensors:
    """experts.E.NAME.weight of all E -> experts.NAME.weight [E, rows, columns]"""
    stacked: dict[str, list[np.ndarray]] = {}
    for name in sorted(tensors, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]):
        stacked.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(tensors[name])
    return {name: np.stack(parts) if len(parts) > 1 else parts[0] for name, parts in stacked.items()}


def _norms_plus_one(tensors: Tensors, config: Config) -> Tensors:
    return {name: values + 1 if name.endswith("norm.weight") else values for name, values in tensors.items()}


def _split_kv_b(tensors: Tensors, config: Config) -> Tensors:
    """kv_b [heads x (nope + value), latent] -> k_b [heads, latent, nope] and v_b [heads, value, latent]"""
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    out: Tensors = {}
    for name, values in tensors.items():
        if ".kv_b_proj." not in name:
            out[name] = values
            continue
        heads = values.reshape(-1, nope + value, values.shape[1])
        out[name.replace("kv_b_proj", "k_b_proj")] = heads[:, :nope].swapaxes(1, 2)
        out[name.replace("kv_b_proj", "v_b_proj")] = heads[:, nope:]
    return out


def _gpt_oss_experts(tensors: Tensors, config: Config) -> Tensors:
    """gate_up_proj [E, columns, rows], gate in the even rows -> gate_proj and up_proj [E, rows, columns]"""
    out: Tensors = {}
    for name, values in tensors.items():
        name = name.replace("_proj_bias", "_proj.bias").replace(".sinks", ".sinks.weight")
        if name.endswith("_proj"):
            name, values = f"{name}.weight", values.swapaxes(1, 2)
        if "gate_up_proj" in name:
            out[name.replace("gate_up_proj", "gate_proj")] = values[:, ::2]
            out[name.replace("gate_up_proj", "up_proj")] = values[:, 1::2]
        else:
            out[name] = values
    return out


def _granite_experts(tensors: Tensors, config: Config) -> Tensors:
    """input_linear has gate's rows and then up's."""
    shared = "mlp.shared_expert" if config["num_local_experts"] else "mlp"
    fused = {"block_sparse_moe.input_linear": "mlp.experts", "shared_mlp.input_linear": shared}
    out: Tensors = {}
    for name, values in tensors.items():
        name = name.replace("shared_mlp.output_linear", f"{shared}.down_proj")
        prefix, _, rest = name.partition(".input_linear.")
        if not rest:
            out[name] = values
            continue
        layer, part = prefix.rsplit(".", 1)
        gate, up = np.split(values, 2, axis=-2)
        into = f"{layer}.{fused[f'{part}.input_linear']}"
        out |= {f"{into}.gate_proj.weight": gate, f"{into}.up_proj.weight": up}
    return out


def _dbrx_experts(tensors: Tensors, config: Config) -> Tensors:
    """w1, v1, w2 [E x width, columns] -> [E, width, columns]; w2's transposed"""
    experts = config["ffn_config"]["moe_num_experts"]

    def parted(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
        if ".experts." not in name:
            return name, values
        each = values.reshape(experts, -1, values.shape[1])
        return f"{name}.weight", each.swapaxes(1, 2) if name.endswith(".w2") else each

    return dict(parted(name, values) for name, values in tensors.items())


def _next_token_layers(tensors: Tensors, config: Config) -> Tensors:
    """The layer that foretells a token more, which transformers does not build: one like the last, and what joins the two inputs."""
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    rng = np.random.default_rng(7)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.15)

    out = dict(tensors)
    for layer in range(layers, layers + config["num_nextn_predict_layers"]):
        own = f"model.layers.{layer}."
        last = f"model.layers.{layers - 1}."
        out |= {own + name.removeprefix(last): noise(*values.shape) for name, values in tensors.items() if name.startswith(last)}
        out |= {f"{own}eh_proj.weight": noise(width, 2 * width)}
        out |= {f"{own}{name}.weight": noise(width) + 1 for name in ("enorm", "hnorm", "shared_head.norm")}
        out |= {f"{own}{name}.weight": noise(config["vocab_size"], width) for name in ("embed_tokens", "shared_head.head")}
    return out


def _long_factors(tensors: Tensors, config: Config) -> Tensors:
    rope = config["rope_parameters"]
    factors = {f"rope_factors_{kind}.weight": rope.get(f"{kind}_factor") for kind in ("long", "short")}
    return {**tensors, **{name: np.array(values, np.float32) for name, values in factors.items() if values}}


def _named(tensors: Tensors, arch: str, blocks: int) -> Tensors:
    """Under the names of the file; a tensor that the architecture has none for is a KeyError."""
    names = get_tensor_name_map(next(each for each, name in MODEL_ARCH_NAMES.items() if name == arch), blocks)

    def named(name: str) -> str:
        if name.startswith("rope_factors"):
            return name
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        if (found := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
            raise KeyError(f"{arch} has no tensor for {name}")
        return found

    return {named(name): values for name, values in tensors.items()}


def _fuse_experts(tensors: Tensors) -> Tensors:
    """Gate's rows and then up's, of each expert."""
    out: Tensors = {}
    for name, values in tensors.items():
        if "ffn_gate_exps.weight" in name:
            up = tensors[name.replace("ffn_gate_exps", "ffn_up_exps")]
            out[name.replace("ffn_gate_exps", "ffn_gate_up_exps")] = np.concatenate([values, up], axis=1)
        elif "ffn_up_exps.weight" not in name:
            out[name] = values
    return out


def _part_experts(tensors: Tensors) -> Tensors:
    out: Tensors = {}
    for name, values in tensors.items():
        if "_exps.weight" in name:
            out |= {name.replace("_exps", f".{e}"): expert for e, expert in enumerate(values)}
        else:
            out[name] = values
    return out


# Formats.

_MATRIX = re.compile(r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down|gate_up)(_exps|_shexp|\.\d+)?)\.weight")
_ROUNDED = re.compile(r"\.([qkvo]_proj|qkv_proj|Wqkv|out_proj|(gate|up|down|gate_up)_proj|(in|out)put_linear|w1|v1|w2)(\.weight)?$")


def _kind(name: str, shape: tuple[int, ...], format: str) -> GGMLQuantizationType | None:
    """The format of a tensor; None for f32."""
    wanted = _MATRIX.fullmatch(name) and shape[-1] % 32 == 0 and (format != "mxfp4" or "_exps" in name)
    return GGMLQuantizationType[format.upper()] if wanted and format != "f32" else None


@torch.no_grad()
def _round(built: Any, format: str) -> None:
    """Gives the model values that the format has, so that what is quantised of them again stays as it is."""
    kind, config = GGMLQuantizationType[format.upper()], built.config
    for name, parameter in built.named_parameters():
        if not _ROUNDED.search(name) or parameter.ndim < 2 or (format == "mxfp4" and parameter.ndim < 3):
            continue
        rows = parameter.numpy()
        if config.model_type == "gpt_oss" and rows.ndim == 3:
            rows = rows.swapaxes(1, 2)
        elif name.endswith(".w2"):
            rows = rows.reshape(config.ffn_config.moe_num_experts, -1, rows.shape[1]).swapaxes(1, 2)
        if rows.shape[-1] % 32 == 0:
            rows[...] = quants.dequantize(quants.quantize(np.ascontiguousarray(rows), kind), kind)


FAMILIES = {
    "mixtral": Family("llama", _llama, interleaved=True),
    "smollm3": Family("smollm3", _llama, interleaved=True),
    "granite": Family("granite", _granite, interleaved=True),
    "granitemoe": Family("granitemoe", _granite, (_granite_experts,), interleaved=True),
    "granitemoehybrid": Family("granite", _granite_4, (_granite_experts,), interleaved=True),
    "granitemoeshared": Family("granitemoe", _granite, (_granite_experts,), interleaved=True),
    "qwen2_moe": Family("qwen2moe", _qwen_moe),
    "qwen3_moe": Family("qwen3moe", _qwen_moe),
    "olmoe": Family("olmoe"),
    "olmo2": Family("olmo2", _windows),
    "olmo3": Family("olmo2", _windows),
    "gpt_oss": Family("gpt-oss", _gpt_oss, (_gpt_oss_experts,)),
    "deepseek_v2": Family("deepseek2", _deepseek, (_split_kv_b,)),
    "deepseek_v3": Family("deepseek2", _deepseek, (_split_kv_b,)),
    "glm4": Family("glm4", _partial_rotary),
    "glm4_moe": Family("glm4moe", _glm4_moe, (_next_token_layers,)),
    "minimax_m2": Family("minimax-m2", _minimax),
    "dbrx": Family("dbrx", _dbrx, (_dbrx_experts,)),
    "gemma2": Family("gemma2", _gemma2, (_norms_plus_one,)),
    "gemma3": Family("gemma3", _gemma3, (_norms_plus_one,)),
    "gemma3_text": Family("gemma3", _gemma3, (_norms_plus_one,)),
    "mistral3": Family("llama", _llama, interleaved=True),
    "phi3": Family("phi3", _phi3, (_long_factors,)),
    "cohere2": Family("cohere2", _cohere2),
    "cohere": Family("command-r", _cohere2),
    "glm": Family("chatglm", _glm),
    "glm4_moe_lite": Family("deepseek2", _deepseek, (_split_kv_b,)),
    "gemma": Family("gemma", lambda config: {"rope.freq_base": None}, (_norms_plus_one,)),
    "ernie4_5": Family("ernie4_5"),
    "ernie4_5_moe": Family("ernie4_5-moe", _ernie_moe),
    "seed_oss": Family("seed_oss"),
    "dots1": Family("dots1", _dots1),
    "exaone4": Family("exaone4", _windows),
}
"""By transformers' model_type."""
