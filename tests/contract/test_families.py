"""Tiny random models of every family: saved by transformers, run by shoal's stages, compared with transformers' logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from shoal.models.weights import SafetensorsWeights
from tests.support import health_checks, tiny
from tests.support.stages import Stages

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "llama one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama no grouping": ("llama", {"num_key_value_heads": 4}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0}}),
    "llama llama3": ("llama", {"rope_parameters": {**tiny.LLAMA3, "rope_theta": 5000.0}}),
    "llama yarn": ("llama", {"rope_parameters": {**tiny.YARN, "rope_theta": 5000.0}}),
    "llama yarn, all of it": (
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
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 20}),
    "mistral window of a block": ("mistral", {"sliding_window": 32}),
    "mistral window of one": ("mistral", {"sliding_window": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2 window off": ("qwen2", {"use_sliding_window": False, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3 tied biases": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 window": ("qwen3", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3 yarn": ("qwen3", {"rope_parameters": {**tiny.YARN, "rope_theta": 1e6}}),
}


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_as_transformers(name: str, tmp_path: Path) -> None:
    family, changes = CASES[name]
    built = tiny.model(family, **changes)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path))
    close(Stages(weights).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


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
