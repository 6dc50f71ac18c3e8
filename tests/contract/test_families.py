"""Tiny random models of every family: saved by transformers, run by shoal's stages, compared with transformers' logits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from shoal.config import KvType, Precision
from shoal.models.families import ARCHITECTURES, BY_MODEL_TYPE
from shoal.models.weights import GgufWeights, SafetensorsWeights
from tests.support import gguf_families, health_checks, tiny, tiny_families
from tests.support.shards import Line, Node
from tests.support.stages import Stages


@dataclass(frozen=True)
class Case:
    """A family's tiny model, and what is other than usual in its configuration."""

    of: str
    """A name of `tiny_families.SIZES`, or a family without an entry there."""
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    context: int = 0
    """The most tokens that are served; 0: it does not matter."""

    @property
    def family(self) -> str:
        return tiny_families.SIZES[self.of][0] if self.of in tiny_families.SIZES else self.of

    def model(self) -> Any:
        return tiny_families.model(self.of, **self.changes) if self.of in tiny_families.SIZES else tiny.model(self.of, **self.changes)


def longrope(original: int) -> dict[str, Any]:
    """Of a model that was trained with so many tokens."""
    lists = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
    return {
        "original_max_position_embeddings": original,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **lists},
    }


_DBRX = tiny_families.SIZES["dbrx"][1]
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
    "mixtral window": Case("mixtral", {"sliding_window": 20}),
    "mixtral one expert of all": Case("mixtral", {"num_experts_per_tok": 1}),
    "mixtral rows that are no whole blocks": Case("mixtral", {"hidden_size": 48, "intermediate_size": 80}),
    "qwen2": Case("qwen2"),
    "qwen2 tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": Case("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2 window off": Case("qwen2", {"use_sliding_window": False, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2 moe renormalised": Case("qwen2 moe", {"norm_topk_prob": True}),
    "qwen2 moe a dense layer": Case("qwen2 moe", {"mlp_only_layers": [0], "shared_expert_intermediate_size": 48}),
    "qwen2 moe every other layer": Case("qwen2 moe", {"decoder_sparse_step": 2}),
    "qwen3": Case("qwen3", {"head_dim": 32}),
    "qwen3 tied biases": Case("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 window": Case("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3 yarn": Case("qwen3", {"rope_parameters": {**tiny.YARN, "rope_theta": 1e6}}),
    "qwen3 moe as they are": Case("qwen3 moe", {"norm_topk_prob": False, "mlp_only_layers": [1]}),
    "olmo3 layer by layer": Case("olmo3", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    "olmo3 scaled": Case("olmo3", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0}}),
    "olmoe bounds": Case("olmoe", {"clip_qkv": 0.8}),
    "olmoe renormalised": Case("olmoe", {"norm_topk_prob": True}),
    "deepseek v2 biases": Case("deepseek v2", {"attention_bias": True}),
    "deepseek v2 yarn": Case("deepseek v2", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0, "mscale": 0.7, "mscale_all_dim": 0.4}}),
    "deepseek v2 widths": Case("deepseek v2", {"v_head_dim": 48, "kv_lora_rank": 64, "qk_nope_head_dim": 32}),
    "deepseek v3 as they are": Case("deepseek v3", {"norm_topk_prob": False, "q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek v3 yarn": Case("deepseek v3", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "gpt-oss windows": Case("gpt-oss", {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]}),
    "gpt-oss plain": Case("gpt-oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "glm4 all rotated": Case("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    "glm4 moe without norms": Case("glm4 moe", {"use_qk_norm": False, "attention_bias": False, "num_experts_per_tok": 3}),
    "glm4 moe groups": Case("glm4 moe", {"n_group": 2, "topk_group": 1, "norm_topk_prob": False}),
    "gemma2 without caps": Case("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2 another scale": Case("gemma2", {"query_pre_attn_scalar": 24, "tie_word_embeddings": False}),
    "gemma3 scaled": Case(
        "gemma3",
        {
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3 window": Case("phi3", {"sliding_window": 40}),
    "phi3 partial": Case("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
    "phi3 short": Case("phi3 longrope", longrope(128), context=100),
    "phi3 long": Case("phi3 longrope", longrope(64), context=200),
    "granite tied": Case("granite", {"tie_word_embeddings": True, "attention_bias": True}),
    "granite moe widths": Case("granite moe shared", {"intermediate_size": 48, "shared_intermediate_size": 80}),
    "granite 4 with experts": Case("granite 4", {"num_local_experts": 8, "num_experts_per_tok": 2, "shared_intermediate_size": 48}),
    "smollm3 by its interval": Case("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "cohere2 by its pattern": Case("cohere2", {"layer_types": None, "sliding_window_pattern": 3, "tie_word_embeddings": False}),
    "minimax m2 all rotated": Case(
        "minimax m2", {"rotary_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
    ),
    "dbrx as they are": Case("dbrx", {"ffn_config": {**_DBRX["ffn_config"], "moe_normalize_expert_weights": None}}),
    "cohere biases": Case("cohere", {"attention_bias": True, "tie_word_embeddings": False}),
    "dots1 as they are": Case(
        "dots1",
        {"norm_topk_prob": False, "n_group": 2, "topk_group": 1, "attention_bias": True},
    ),
    "dots1 windows": Case("dots1", {"sliding_window": 20, "max_window_layers": 1}),
    "ernie 4.5 biases": Case("ernie 4.5", {"use_bias": True, "tie_word_embeddings": False}),
    "ernie 4.5 moe without shared experts": Case("ernie 4.5 moe", {"moe_num_shared_experts": 0, "tie_word_embeddings": False}),
    "ernie 4.5 moe in every other layer": Case(
        "ernie 4.5 moe", {"num_hidden_layers": 6, "moe_layer_interval": 2, "moe_layer_end_index": 4}
    ),
    "exaone4 by its pattern": Case(
        "exaone4", {"num_hidden_layers": 4, "sliding_window": 20, "layer_types": None, "sliding_window_pattern": 3}
    ),
    "exaone4 llama3": Case("exaone4 windows", {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5000.0}}),
    "gemma untied": Case("gemma", {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3 beside images by its pattern": Case("gemma3 beside images", {"sliding_window_pattern": 3}),
    "glm without biases": Case("glm", {"attention_bias": False}),
    "glm all rotated": Case("glm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
    "glm4 moe lite without narrow queries": Case("glm4 moe lite", {"q_lora_rank": None, "n_group": 2, "topk_group": 1}),
    "mistral beside images with a window": Case("mistral beside images", {"sliding_window": 20}),
    "seed-oss biases": Case("seed-oss", {"attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    **{name: Case(name, context=len(tiny.TOKENS)) for name in tiny_families.SIZES},
}


def test_every_family_has_a_case() -> None:
    assert {case.family for case in CASES.values()} == BY_MODEL_TYPE.keys()


class Built:
    """A case's model: as transformers has it, and its files."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.model = case.model()
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe", "olmoe", "deepseek v3", "gpt-oss", "glm4 moe", "granite moe", "dbrx"])
def test_experts_that_score_alike(name: str, tmp_path: Path) -> None:
    """Each pair of neighbours does; where a pair is among the best, both are taken."""
    model = tiny_families.model(name)
    with torch.no_grad():
        for label, values in [*model.named_parameters(), *model.named_buffers()]:
            if re.search(r"(router|router\.layer|mlp\.gate)\.(weight|bias)$|correction_bias$", label):
                values[1::2] = values[::2]
    close(Stages(SafetensorsWeights(tiny.saved(model, tmp_path))).logits(tiny.TOKENS), tiny.logits(model, tiny.TOKENS))


@pytest.mark.slow
def test_a_gate_and_an_up_beyond_their_bounds(tmp_path: Path) -> None:
    model = tiny_families.model("gpt-oss")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "gate_up_proj" in name:
                values.mul_(8)
    close(Stages(SafetensorsWeights(tiny.saved(model, tmp_path))).logits(tiny.TOKENS), tiny.logits(model, tiny.TOKENS))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def every_expert(name: str) -> dict[str, Any]:
    """Changes by which each row takes all experts."""
    sizes = tiny_families.SIZES[name][1]
    if "ffn_config" in sizes:
        return {"ffn_config": {**sizes["ffn_config"], "moe_top_k": sizes["ffn_config"]["moe_num_experts"]}}
    count = next((sizes[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in sizes), 0)
    return {"num_experts_per_tok": count, **({"topk_group": sizes["n_group"]} if "n_group" in sizes else {})} if count else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tiny_families.SIZES if name != "deepseek v2 lite"])
def test_rounded_weights_are_near(name: str, tmp_path: Path) -> None:
    """All experts are taken: of two that score almost alike, a rounded row may take the other one. 27 layers add too much up."""
    model = tiny_families.model(name, **every_expert(name))
    weights, theirs = SafetensorsWeights(tiny.saved(model, tmp_path)), tiny.logits(model, tiny.TOKENS)
    for precision, most in ((Precision.Q8, 0.08), (Precision.Q4, 0.6)):
        ours = Stages(weights, precision=precision, context=len(tiny.TOKENS)).logits(tiny.TOKENS)
        assert 0 < distance(ours, theirs) < most


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.SIZES)
def test_a_lost_node_is_filled_anew_bit_by_bit(name: str, tmp_path: Path) -> None:
    weights = SafetensorsWeights(tiny.saved(tiny_families.model(name), tmp_path))
    layers, tokens = len(weights.spec.layers), []
    for lost in (False, True):
        line = Line(weights)
        layouts = [range(1), range(1, layers - 1), range(layers - 1, layers)]
        line.enter(layouts, [Node(line) for _ in layouts])
        for sequence, length in enumerate((75, 12)):
            line.add(sequence, tiny.TOKENS[:length])
        line.decode(3)
        if lost:
            before = line.kv()
            assert line.enter(layouts, [line.nodes[0], Node(line), line.nodes[2]]) == []
            assert line.kv() == before
        line.decode(3)
        tokens.append(line.tokens)
    assert tokens[0] == tokens[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.SIZES)
def test_gguf_files_say_what_safetensors_say(name: str, tmp_path: Path) -> None:
    built = tiny_families.model(name)
    weights = GgufWeights(gguf_families.write(built, tmp_path / "m.gguf"))
    ours = Stages(weights, 2, context=len(tiny.TOKENS)).logits(tiny.TOKENS, 40)
    close(ours, tiny.logits(built, tiny.TOKENS))


def test_every_architecture_has_a_gguf_file(tmp_path: Path) -> None:
    written = {gguf_families.FAMILIES[family].arch for family, _ in tiny_families.SIZES.values()}
    assert written | {"llama", "qwen2", "qwen3"} == ARCHITECTURES.keys()


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
    ours = Stages(SafetensorsWeights(tiny.saved(built, tmp_path)), kv_type=KvType.BF16).logits(tiny.TOKENS)
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
