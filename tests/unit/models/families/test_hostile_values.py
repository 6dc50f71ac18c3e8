"""Whatever a configuration or metadata says in a value's place, the model is read or refused by one of shoal's errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoConfig

from shoal.errors import ShoalError
from shoal.models.families import FAMILIES
from shoal.models.families.read import spec_from_config, spec_from_gguf
from tests.support import tiny, tiny_families

VALUES: list[Any] = [0, -1, 2, -0.5, 10**30, float("inf"), float("nan"), "x", "", None, True, [], [1], [None, "x"], {}, {"factor": 0}]


def written(name: str) -> dict[str, Any]:
    family, sizes = tiny_families.SIZES.get(name, (name, {}))
    return AutoConfig.for_model(family, **{**tiny.SIZES, **sizes}).to_dict()


def spoilt(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """With each value in each place, one level down, too; and without it."""
    for key, value in values.items():
        yield {k: v for k, v in values.items() if k != key}
        for wrong in VALUES:
            yield {**values, key: wrong}
        if isinstance(value, dict):
            yield from ({**values, key: inner} for inner in spoilt(value))


@pytest.mark.parametrize("name", [*tiny_families.SIZES, "llama", "mistral", "qwen2", "qwen3"])
def test_configurations(name: str) -> None:
    values = written(name)
    assert spec_from_config(values, "m").layers
    refused = 0
    for changed in spoilt(values):
        try:
            spec_from_config(changed, "m")
        except ShoalError:
            refused += 1
    assert refused > 50


KEYS: dict[str, Any] = {
    "block_count": 3,
    "embedding_length": 64,
    "context_length": 512,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.kv_lora_rank": 32,
    "attention.q_lora_rank": 48,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.sliding_window": 16,
    "attention.sliding_window_pattern": 4,
    "attention.clamp_kqv": 1.0,
    "attention.scale": 0.1,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 5.0,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 32,
    "expert_shared_count": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.5,
    "expert_gating_func": 2,
    "expert_group_count": 2,
    "expert_group_used_count": 1,
    "leading_dense_block_count": 1,
    "interleave_moe_layer_step": 1,
    "nextn_predict_layers": 0,
    "embedding_scale": 2.0,
    "residual_scale": 0.5,
    "logit_scale": 4.0,
}
SHAPES = {"token_embd.weight": (97, 64), "blk.0.attn_q_norm.weight": (48,), "blk.1.exp_probs_b.bias": (8,)}


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.from_metadata], ids=lambda family: family.name)
def test_metadata(family: Any) -> None:
    arch = family.architecture or family.name
    shapes = {name: shape for name, shape in SHAPES.items() if family.name != "cohere" or "norm" not in name}  # Command R+ has norms

    def read(values: dict[str, Any]) -> None:
        spec_from_gguf({"general.architecture": arch, **{f"{arch}.{key}": value for key, value in values.items()}}, shapes, {}, "m")

    read(KEYS)
    refused = 0
    for changed in spoilt(KEYS):
        try:
            read(changed)
        except ShoalError:
            refused += 1
    assert refused > 50
