"""Descriptions and weights that do not hold together: one error that says so, before anything is computed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.errors import CorruptModel, ShoalError
from shoal.models.weights import GgufWeights, SafetensorsWeights, open_spec
from tests.support import tiny
from tests.support.gguf_writer import write_model
from tests.support.stages import Stages


def _llama(tmp_path: Path, extra: dict[str, Any]) -> GgufWeights:
    built = tiny.model("llama", num_hidden_layers=1)
    path = write_model(tmp_path / "m.gguf", built, "llama")
    weights = GgufWeights(path)
    from shoal.models.families.read import spec_from_gguf

    meta = {**weights.file.meta, **{f"llama.{k}": v for k, v in extra.items()}}
    spec_from_gguf(meta, {n: t.shape for n, t in weights.file.tensors.items()}, {}, path).check(path)
    return weights


@pytest.mark.parametrize(
    "extra",
    [
        {"block_count": "x"},
        {"block_count": float("nan")},
        {"block_count": float("inf")},
        {"context_length": [1, "x"]},
        {"rope.freq_base": "x"},
        {"attention.head_count_kv": []},
        {"attention.key_length": [1]},
        {"context_length": 0},
        {"rope.freq_base": 0.0},
        {"rope.freq_base": float("nan")},
        {"attention.layer_norm_rms_epsilon": "x"},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 0},
    ],
)
def test_metadata_of_other_types(extra: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ShoalError):
        _llama(tmp_path, extra)


def test_a_number_of_layers_that_cannot_be(tmp_path: Path) -> None:
    """2**32 - 1 would take 32 GiB for the tuple of windows alone."""
    tracemalloc.start()
    try:
        with pytest.raises(CorruptModel):
            _llama(tmp_path, {"block_count": 2**23})
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [4, 12])
def test_rope_factors_of_another_length(length: int, tmp_path: Path) -> None:
    weights = write_model(tmp_path / "m.gguf", tiny.model("llama"), "llama", factors=[1.0] * length)
    with pytest.raises(CorruptModel):
        Stages(GgufWeights(weights))


def _changed(directory: Path, **changes: Any) -> Path:
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": float("inf")},
        {"num_hidden_layers": 2**23},
        {"rope_parameters": {"rope_type": "linear", "factor": "x"}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
        {"quantization_config": "gptq"},
        {"head_dim": 10**30},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": "x"}},
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ShoalError):
        open_spec(_changed(tiny.saved(tiny.model("llama"), tmp_path), **changes))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_norm",
        "model.layers.1.input_layernorm",
        "model.norm",
        "model.layers.1.self_attn.q_proj.bias",
    ],
)
def test_vectors_of_another_length(name: str, tmp_path: Path) -> None:
    """A short q_norm is read past its end by the kernels; a short norm is a ValueError of theirs that nobody catches."""
    from safetensors.numpy import save_file

    built = tiny.model("qwen3", head_dim=32, attention_bias=True)
    tiny.saved(built, tmp_path)
    state = {n: t.detach().numpy() for n, t in built.state_dict().items()}
    key = name if name.endswith("bias") else f"{name}.weight"
    state[key] = np.ascontiguousarray(state[key][:8])
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CorruptModel):
        Stages(SafetensorsWeights(tmp_path), precision=Precision.FP32)


def test_a_bias_that_the_family_always_has(tmp_path: Path) -> None:
    """Without it the model would run, and answer otherwise."""
    from safetensors.numpy import load_file, save_file

    file = tiny.saved(tiny.model("qwen2"), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, file)
    with pytest.raises(CorruptModel, match=r"no tensor model\.layers\.1\.self_attn\.k_proj\.bias"):
        Stages(SafetensorsWeights(tmp_path))
