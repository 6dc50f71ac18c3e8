"""Tiny random models of every family: saved by transformers, run by shoal's stages, compared with transformers' logits."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from shoal.config import Precision
from shoal.models.families import BY_MODEL_TYPE
from shoal.models.weights import SafetensorsWeights
from tests.support import health_checks, tiny
from tests.support.stages import Stages


@dataclass(frozen=True)
class Case:
    """A family's tiny model, and what is other than usual in its configuration."""

    family: str
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    context: int = 0
    """The most tokens that are served; 0: it does not matter."""


def longrope(original: int) -> dict[str, Any]:
    """Of a model that was trained with so many tokens."""
    lists = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **lists},
    }


CASES: dict[str, Case] = {
    "llama": Case("llama"),
    "llama tied": Case("llama", {"tie_word_embeddings": True}),
    "llama biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": Case("llama", {"head_dim": 32}),
    "llama one KV head": Case("llama", {"num_key_value_heads": 1}),
    "llama no grouping": Case("llama", {"num_key_value_heads": 4}),
    "llama linear": Case("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0}}),
    "llama llama3": Case("llama", {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5000.0}}),
    "llama yarn": Case("llama", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0}}),
    "llama yarn, all of it": Case(
        "llama",
        {
            "rope_parameters": {
                **tiny.YARN,
                "rope_theta": 5000.0,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
                "truncate": False,
            }
        },
    ),
    "mistral": Case("mistral", {"sliding_window": None}),
    "mistral window": Case("mistral", {"sliding_window": 20}),
    "mistral window of a block": Case("mistral", {"sliding_window": 32}),
    "mistral window of one": Case("mistral", {"sliding_window": 1}),
    "mixtral": Case("mixtral"),
    "mixtral window": Case("mixtral", {"sliding_window": 20}),
    "mixtral one expert of all": Case("mixtral", {"num_experts_per_tok": 1}),
    "qwen2": Case("qwen2"),
    "qwen2 tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": Case("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2 window off": Case("qwen2", {"use_sliding_window": False, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2_moe": Case("qwen2_moe"),
    "qwen2_moe renormalised": Case("qwen2_moe", {"norm_topk_prob": True, "mlp_only_layers": []}),
    "qwen2_moe every other layer": Case("qwen2_moe", {"mlp_only_layers": [], "decoder_sparse_step": 2}),
    "qwen3": Case("qwen3", {"head_dim": 32}),
    "qwen3 tied biases": Case("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 window": Case("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3 yarn": Case("qwen3", {"rope_parameters": {**tiny.YARN, "rope_theta": 1e6}}),
    "qwen3_moe": Case("qwen3_moe"),
    "qwen3_moe as they are": Case("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [1]}),
    "olmo2": Case("olmo2"),
    "olmoe": Case("olmoe"),
    "olmoe without bounds": Case("olmoe", {"clip_qkv": None}),
    "olmoe renormalised": Case("olmoe", {"norm_topk_prob": True}),
    "deepseek_v2": Case("deepseek_v2"),
    "deepseek_v2 queries by way of a vector": Case("deepseek_v2", {"q_lora_rank": 48, "attention_bias": True}),
    "deepseek_v2 groups": Case(
        "deepseek_v2",
        {"topk_method": "group_limited_greedy", "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    ),
    "deepseek_v2 yarn": Case("deepseek_v2", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0, "mscale": 0.7, "mscale_all_dim": 0.4}}),
    "deepseek_v2 values as wide as latent vectors": Case("deepseek_v2", {"v_head_dim": 48, "kv_lora_rank": 64}),
    "deepseek_v3": Case("deepseek_v3"),
    "deepseek_v3 as they are": Case("deepseek_v3", {"norm_topk_prob": False, "q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek_v3 yarn": Case("deepseek_v3", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "gpt_oss": Case("gpt_oss"),
    "gpt_oss windows": Case("gpt_oss", {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]}),
    "gpt_oss plain": Case("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "glm4": Case("glm4"),
    "glm4 all rotated": Case("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}}),
    "glm4_moe": Case("glm4_moe"),
    "glm4_moe without norms": Case("glm4_moe", {"use_qk_norm": False, "routed_scaling_factor": 2.5, "num_experts_per_tok": 3}),
    "glm4_moe groups": Case("glm4_moe", {"n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
    "gemma2": Case("gemma2"),
    "gemma2 without caps": Case("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text": Case("gemma3_text"),
    "gemma3_text scaled": Case(
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "phi3": Case("phi3"),
    "phi3 no window": Case("phi3", {"sliding_window": None}),
    "phi3 partial": Case("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
    "phi3 short": Case("phi3", longrope(128), context=100),
    "phi3 long": Case("phi3", longrope(64), context=200),
    "granite": Case("granite"),
    "granite tied": Case("granite", {"tie_word_embeddings": True, "attention_bias": True}),
    "granitemoe": Case("granitemoe"),
    "granitemoeshared": Case("granitemoeshared"),
    "smollm3": Case("smollm3"),
    "smollm3 layer by layer": Case("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1]}),
    "cohere2": Case("cohere2"),
    "cohere2 layer by layer": Case("cohere2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"] + ["sliding_attention"] * 2}),
    "dbrx": Case("dbrx"),
    "dbrx as they are": Case("dbrx", {"ffn_config": {**tiny.OF_FAMILY["dbrx"]["ffn_config"], "moe_normalize_expert_weights": None}}),
}


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == BY_MODEL_TYPE.keys()


class Built:
    """A case's model: as transformers has it, and its files."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.model = tiny.model(case.family, **case.changes)
        self.weights = SafetensorsWeights(tiny.saved(self.model, directory))
        self._context = case.context

    def stages(self, splits: int = 1, **options: Any) -> Stages:
        return Stages(self.weights, splits, context=self._context, **options)

    def theirs(self, tokens: list[int] = tiny.TOKENS) -> np.ndarray:
        return tiny.logits(self.model, tokens)


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(CASES[request.param], tmp_path_factory.mktemp("model"))


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_as_transformers(built: Built) -> None:
    close(built.stages().logits(tiny.TOKENS), built.theirs())


@pytest.mark.slow
def test_bit_by_bit_however_it_is_split_and_cut(built: Built) -> None:
    whole = built.stages().logits(tiny.TOKENS)
    for splits, chunk, threads in ((2, 0, 1), (3, 7, 1), (1, 32, 2), (2, 40, 2)):
        assert np.array_equal(built.stages(splits, threads=threads).logits(tiny.TOKENS, chunk), whole), (splits, chunk, threads)


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(built: Built) -> None:
    """Each is transformers' likeliest after those before it: by induction, its greedy answer."""
    prompt = tiny.TOKENS[:-8]
    answer = built.stages().greedy(prompt, 8)
    assert built.theirs([*prompt, *answer[:-1]])[len(prompt) - 1 :].argmax(-1).tolist() == answer


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 7, 32, 40])
def test_splits_and_chunks(splits: int, chunk: int, tmp_path: Path) -> None:
    built = tiny.model("mistral", sliding_window=20)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path))
    close(Stages(weights, splits).logits(tiny.TOKENS, chunk), tiny.logits(built, tiny.TOKENS))


def test_sharded_files(tmp_path: Path) -> None:
    built = tiny.model("llama")
    weights = SafetensorsWeights(tiny.saved(built, tmp_path, max_shard_size="60KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    close(Stages(weights).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files(dtype: torch.dtype, tmp_path: Path) -> None:
    built = tiny.model("qwen2").to(dtype)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path))
    assert weights.matrix("layers.0.q").format == {torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)  # casting `built` back would leave its rope in half
    close(Stages(weights).logits(tiny.TOKENS), tiny.logits(theirs, tiny.TOKENS))


def test_bf16_cache_is_near(tmp_path: Path) -> None:
    built = tiny.model("llama")
    ours = Stages(SafetensorsWeights(tiny.saved(built, tmp_path)), bf16=True).logits(tiny.TOKENS)
    theirs = tiny.logits(built, tiny.TOKENS)
    assert 0 < np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}, tiny.LLAMA3, tiny.YARN])
def test_configurations_as_earlier_transformers_wrote_them(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0} if scaling and "type" in scaling else scaling or {"rope_type": "default"}
    built = tiny.model("llama", rope_parameters={**rope, "rope_theta": 5000.0})
    file = tiny.saved(built, tmp_path) / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps({**config, "rope_theta": 5000.0, "rope_scaling": scaling}))
    close(Stages(SafetensorsWeights(tmp_path)).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


architectures = st.fixed_dictionaries(
    {
        "hidden_size": st.sampled_from([48, 96, 144]),
        "intermediate_size": st.sampled_from([16, 48, 112]),
        "num_hidden_layers": st.integers(1, 4),
        "num_attention_heads": st.sampled_from([2, 6]),
        "num_key_value_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([16, 48, 80]),
        "vocab_size": st.sampled_from([97, 112, 130]),
        "tie_word_embeddings": st.booleans(),
    }
)


@pytest.mark.slow
@settings(max_examples=25, derandomize=True, suppress_health_check=health_checks.EVERY)
@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    sizes=architectures,
    chunk=st.integers(0, 75),
    splits=st.integers(1, 3),
)
def test_any_sizes(family: str, sizes: dict[str, Any], chunk: int, splits: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = tiny.model(family, **sizes)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path_factory.mktemp("any")))
    close(Stages(weights, min(splits, len(weights.spec.layers))).logits(tiny.TOKENS, chunk), tiny.logits(built, tiny.TOKENS))
