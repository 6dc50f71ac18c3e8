"""What a model is, read from a config.json or GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from transformers import AutoConfig

from shoal.errors import CorruptModel, UnsupportedModel
from shoal.models.families import FAMILIES
from shoal.models.families.read import spec_from_config, spec_from_gguf
from shoal.models.spec import Dense, Experts, GroupedQuery, Latent, LayerSpec, ModelSpec, Rope, Routing
from tests.support import tiny


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    return {**tiny.SIZES, "model_type": family, **changes}


def read(family: str = "llama", **changes: Any) -> ModelSpec:
    return spec_from_config(config(family, **changes), "m")


def meta(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "block_count": 3,
        "embedding_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "feed_forward_length": 96,
        "context_length": 512,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    values.update({key.replace("__", "."): value for key, value in changes.items()})
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in values.items() if v is not None}}


TENSORS = {"token_embd.weight": (97, 64), "output.weight": (97, 64)}
NO_FACTORS: dict[str, tuple[float, ...]] = {}


def read_gguf(
    arch: str = "llama",
    tensors: dict[str, tuple[int, ...]] = TENSORS,
    factors: Mapping[str, tuple[float, ...]] = NO_FACTORS,
    **changes: Any,
) -> ModelSpec:
    return spec_from_gguf(meta(arch, **changes), tensors, factors, "m")


def attention_of(spec: ModelSpec) -> GroupedQuery:
    """That of every layer."""
    (found,) = {layer.attention for layer in spec.layers}
    assert isinstance(found, GroupedQuery)
    return found


def experts_of(spec: ModelSpec) -> Experts:
    """Those of the last layer."""
    found = spec.layers[-1].feed_forward
    assert isinstance(found, Experts)
    return found


LATENT = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
EXPERTS: dict[str, Any] = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}


def plain(spec: ModelSpec) -> ModelSpec:
    """Without its rotary embedding, of which the two kinds of file say different things that mean the same."""
    return msgspec.structs.replace(spec, layers=tuple(_plain(layer) for layer in spec.layers))


def _plain(layer: LayerSpec) -> LayerSpec:
    return msgspec.structs.replace(layer, attention=msgspec.structs.replace(layer.attention, rope=Rope()))


def rope_of(spec: ModelSpec) -> Rope:
    rope = attention_of(spec).rope
    assert rope is not None
    return rope


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_as_transformers_writes_it(family: str) -> None:
    written = AutoConfig.for_model(family, **tiny.SIZES).to_dict()
    spec = spec_from_config(written, "m")
    window = {"mistral": 4096}.get(family, 0)
    layer = LayerSpec(GroupedQuery(4, 2, 16, rope_of(spec), window, "head" if family == "qwen3" else ""), Dense(96))
    assert spec == ModelSpec(family, 64, 97, 1e-5, 512, False, (layer,) * 3)


def test_both_kinds_of_file_say_the_same() -> None:
    assert plain(read_gguf()) == plain(read())


def test_what_may_be_left_out() -> None:
    spec = read(head_dim=None, num_key_value_heads=None)
    assert (attention_of(spec).head_dim, attention_of(spec).kv_heads) == (16, 4)
    assert attention_of(read_gguf(attention__head_count_kv=None)).kv_heads == 4


def test_numbers_that_are_kept_of_a_token() -> None:
    assert attention_of(read()).kv_values == 2 * 2 * 16


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope()),
        ({"rope_theta": 5e5}, Rope(theta=5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(theta=5e5)),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, Rope(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(kind="linear", factor=2.0)),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            Rope(kind="yarn", factor=4.0, original_context=128),
        ),
    ],
)
def test_rope(changes: dict[str, Any], rope: Rope) -> None:
    found = rope_of(read(**changes))
    assert (found.theta, found.kind, found.factor) == (rope.theta, rope.kind, rope.factor)
    assert found.original_context == (rope.original_context or 512)


@pytest.mark.parametrize(
    ("family", "changes", "windows"),
    [
        ("llama", {"sliding_window": 8}, (0, 0, 0)),
        ("mistral", {}, (0, 0, 0)),
        ("mistral", {"sliding_window": None}, (0, 0, 0)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8)),
        ("qwen2", {"sliding_window": 8}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 1}, (0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, (0, 8, 8)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, (0, 0, 0)),
        (
            "qwen3",
            {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            (0, 8, 0),
        ),
    ],
)
def test_windows(family: str, changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert tuple(layer.attention.window for layer in read(family, **changes).layers) == windows


def test_windows_of_gguf() -> None:
    assert [layer.attention.window for layer in read_gguf(attention__sliding_window=8).layers] == [8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gpt2"}, "model_type 'gpt2'.*" + ", ".join(FAMILIES)),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by 'fp8'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"hidden_size": 72}, "multiple of 16"),
        ({"intermediate_size": 100}, "multiple of 16"),
        ({"head_dim": 24}, "multiple of 16"),
        ({"head_dim": 528}, "of values 512"),
        ({"family": "deepseek_v3", "rope_interleave": False, **LATENT}, "rope_interleave"),
        ({"family": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2, "swiglu_limit": 5.0}, "limit or slope"),
    ],
    ids=str,
)
def test_models_that_are_not_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(**changes)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [None, "64", 1.5, True, [64]])
def test_sizes_that_are_none(key: str, value: Any) -> None:
    with pytest.raises(CorruptModel, match=key):
        read(**{key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 0},
        {"num_attention_heads": -4},
        {"vocab_size": 0},
        {"num_key_value_heads": 3},
        {"head_dim": -16},
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptModel):
        read(**changes)


def test_layer_types_of_another_number() -> None:
    with pytest.raises(CorruptModel):
        read("qwen3", sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize(("arch", "norm"), [("llama", False), ("qwen2", False), ("qwen3", True)])
def test_architectures_of_gguf(arch: str, norm: bool) -> None:
    spec = read_gguf(arch)
    assert (spec.family, attention_of(spec).qk_norm, spec.tied) == (arch, "head" if norm else "", False)


def test_a_gguf_file_without_a_head_is_tied() -> None:
    assert read_gguf(tensors={"token_embd.weight": (97, 64)}).tied


def test_rope_of_gguf() -> None:
    assert rope_of(read_gguf(rope__freq_base=5e5)) == Rope(theta=5e5)
    assert rope_of(read_gguf(factors={"rope_freqs": (2.0,) * 8})) == Rope(kind="factors", factors=(2.0,) * 8)
    scaled = read_gguf(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=128)
    assert rope_of(scaled) == Rope(kind="yarn", factor=4.0, original_context=128)
    assert rope_of(read_gguf(rope__scaling__type="none", rope__scaling__factor=4.0)) == Rope()
    assert rope_of(read_gguf(rope__dimension_count=8)) == Rope(dims=8)
    lists = {"rope_factors_short": (1.0,) * 8, "rope_factors_long": (3.0,) * 8}
    long = rope_of(read_gguf("phi3", factors=lists, rope__scaling__original_context_length=128, rope__scaling__attn_factor=1.2))
    assert (long.kind, long.factors, long.long_factors) == ("factors", *lists.values())
    assert (long.original_context, long.attention_factor) == (128, 1.2)


def test_sizes_that_are_the_same_in_every_layer() -> None:
    assert attention_of(read_gguf(attention__head_count_kv=[2, 2, 2])).kv_heads == 2


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("bert", {}, "architecture 'bert'"),
        ("llama", {"attention__head_count_kv": [1, 2, 2]}, "differs from layer to layer"),
        ("llama", {"rope__scaling__attn_factor": 1.5}, "attn_factor"),
        ("llama", {"rope__scale_linear": 2.0}, "scale_linear"),
        ("glm4moe", {**EXPERTS, "expert_gating_func": 3}, "expert_gating_func 3"),
        ("llama", {"rope__scaling__type": "longrope"}, "'longrope'"),
    ],
)
def test_gguf_files_that_are_not_supported(arch: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read_gguf(arch, **changes)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention__head_count", "feed_forward_length"])
@pytest.mark.parametrize("value", [None, 0])
def test_gguf_sizes_that_are_missing(key: str, value: int | None) -> None:
    sizes: dict[str, Any] = {key: value}
    with pytest.raises(CorruptModel):
        read_gguf(**sizes)


def test_no_architecture() -> None:
    with pytest.raises(UnsupportedModel):
        spec_from_gguf({}, {}, {}, "m")


def test_no_embedding() -> None:
    with pytest.raises(CorruptModel, match="token_embd"):
        read_gguf(tensors={})


# Experts


@pytest.mark.parametrize(
    ("family", "changes", "routing"),
    [
        ("mixtral", {"num_local_experts": 8}, Routing(2, renormalised=True)),
        ("qwen2_moe", {"num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}, Routing(2)),
        ("qwen3_moe", {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True}, Routing(2, renormalised=True)),
        ("qwen3_moe", {"num_local_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": False}, Routing(2)),
        ("granitemoe", {"num_local_experts": 8}, Routing(2, "softmax of the chosen")),
        ("gpt_oss", {"num_local_experts": 8}, Routing(2, "softmax of the chosen")),
        (
            "deepseek_v2",
            {**LATENT, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
            Routing(2, scale=16.0, groups=4, groups_chosen=2),
        ),
        ("deepseek_v2", {**LATENT, "topk_method": "greedy", "n_group": 4, "topk_group": 2}, Routing(2)),
        (
            "deepseek_v3",
            {**LATENT, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
            Routing(2, "sigmoid", True, 2.5, selection_bias=True, groups=4, groups_chosen=2, group_score="best two"),
        ),
    ],
)
def test_how_experts_are_chosen(family: str, changes: dict[str, Any], routing: Routing) -> None:
    assert experts_of(read(family, **{"num_experts_per_tok": 2, **changes})).routing == routing


@pytest.mark.parametrize(
    ("arch", "changes", "routing"),
    [
        ("llama", {"feed_forward_length": 32}, Routing(2, renormalised=True)),
        ("qwen2moe", {"expert_shared_feed_forward_length": 64}, Routing(2)),
        ("qwen3moe", {}, Routing(2, renormalised=True)),
        ("olmoe", {}, Routing(2)),
        ("gpt-oss", {"attention__sliding_window": 16}, Routing(2, "softmax of the chosen")),
        (
            "glm4moe",
            {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5},
            Routing(2, "sigmoid", True, 1.5, selection_bias=True, group_score="best two"),
        ),
    ],
)
def test_how_experts_are_chosen_in_gguf(arch: str, changes: dict[str, Any], routing: Routing) -> None:
    tensors = {**TENSORS, **({"blk.2.exp_probs_b.bias": (8,)} if routing.selection_bias else {})}
    assert experts_of(read_gguf(arch, tensors, **{**EXPERTS, **changes})).routing == routing


def test_layers_without_experts() -> None:
    def kinds(family: str, **changes: Any) -> list[bool]:
        sizes = {"num_experts_per_tok": 2, "num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
        return [isinstance(layer.feed_forward, Experts) for layer in read(family, **{**sizes, **LATENT, **changes}).layers]

    assert kinds("qwen2_moe") == [True, True, True]
    assert kinds("qwen2_moe", mlp_only_layers=[1]) == [True, False, True]
    assert kinds("qwen3_moe", decoder_sparse_step=2) == [False, True, False]
    assert kinds("deepseek_v2", first_k_dense_replace=2) == [False, False, True]
    dense_first = read_gguf("glm4moe", **EXPERTS, leading_dense_block_count=1, expert_gating_func=2)
    assert [isinstance(layer.feed_forward, Experts) for layer in dense_first.layers] == [False, True, True]


def test_layers_that_predict_ahead_are_not_run() -> None:
    assert len(read_gguf("glm4moe", **EXPERTS, nextn_predict_layers=1, expert_gating_func=2).layers) == 2


def test_more_experts_than_there_are() -> None:
    with pytest.raises(CorruptModel, match="9 of 8 experts"):
        read("mixtral", num_local_experts=8, num_experts_per_tok=9)
    with pytest.raises(CorruptModel, match="does not say how many experts"):
        read("mixtral", num_experts_per_tok=2)
    with pytest.raises(CorruptModel, match="expert_used_count"):
        read_gguf("qwen3moe", **{**EXPERTS, "expert_used_count": None})


# What else families say


def test_latent_attention() -> None:
    spec = read("deepseek_v2", **LATENT, q_lora_rank=48, rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7})
    (found,) = {layer.attention for layer in spec.layers}
    assert isinstance(found, Latent)
    assert (found.q_heads, found.kv_rank, found.nope_dim, found.rope_dim, found.value_dim, found.q_rank) == (4, 32, 16, 16, 32, 48)
    assert found.scale == pytest.approx(32**-0.5 * (0.07 * math.log(4) + 1) ** 2)
    assert found.rope.attention_factor == pytest.approx(1.0)


def test_scales_and_caps() -> None:
    granite = read("granite", embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.1)
    assert (granite.embedding_scale, granite.logit_scale, granite.layers[0].residual_scale) == (12.0, 0.125, 0.22)
    assert attention_of(granite).scaling == 0.1
    gemma = read("gemma2", sliding_window=None, query_pre_attn_scalar=64, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    assert (gemma.embedding_scale, gemma.logit_cap, gemma.layers[0].norms, gemma.tied) == (8.0, 30.0, "both", False)
    assert (attention_of(gemma).scaling, attention_of(gemma).cap) == (0.125, 50.0)


def test_layers_without_rotation() -> None:
    def rotated(spec: ModelSpec) -> list[bool]:
        return [layer.attention.rope is not None for layer in spec.layers]

    assert rotated(read("smollm3", num_hidden_layers=5)) == [True, True, True, False, True]
    assert rotated(read("smollm3", no_rope_layers=[0, 1, 1])) == [False, True, True]
    assert rotated(read("cohere2", num_hidden_layers=5, sliding_window=16)) == [True, True, True, False, True]
    assert rotated(read_gguf("smollm3", block_count=5)) == [True, True, True, False, True]


def test_other_rotations_under_windows() -> None:
    told = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    spec = read("gemma3_text", num_hidden_layers=7, sliding_window=16, rope_parameters=told)
    ropes = [layer.attention.rope for layer in spec.layers]
    assert [rope.kind for rope in ropes if rope is not None] == ["default"] * 5 + ["linear", "default"]
    older = read("gemma3_text", num_hidden_layers=7, sliding_window=16, rope_theta=1e6, rope_local_base_freq=5e3)
    assert [rope.theta for rope, _ in older.rotations] == [5e3, 1e6]
