"""Weights under one set of names: GGUF files written as llama.cpp's converter does, and directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from shoal.config import Precision
from shoal.errors import CorruptModel, UnsupportedModel, UserError
from shoal.models.matrix import BLOCKS, FORMATS, StoredMatrix
from shoal.models.weights import GgufWeights, SafetensorsWeights, open_weights
from tests.support import tiny
from tests.support.gguf_writer import blocks, dequantised, write_model
from tests.support.stages import Stages

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
"""K-quants have blocks of 256."""
QUANTISED = sorted(set(FORMATS) - {"f32"})


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-4)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_gguf_of_every_family(arch: str, tied: bool, tmp_path: Path) -> None:
    built = tiny.model(arch, tie_word_embeddings=tied)
    weights = GgufWeights(write_model(tmp_path / "m.gguf", built, arch))
    assert weights.spec.tied == tied
    close(Stages(weights).logits(tiny.TOKENS, 40), tiny.logits(built, tiny.TOKENS))


def test_gguf_of_llama_with_biases(tmp_path: Path) -> None:
    built = tiny.model("llama", attention_bias=True)
    close(
        Stages(GgufWeights(write_model(tmp_path / "m.gguf", built, "llama"))).logits(tiny.TOKENS),
        tiny.logits(built, tiny.TOKENS),
    )


def test_gguf_with_rope_factors(tmp_path: Path) -> None:
    built = tiny.model("llama", rope_parameters={**tiny.LLAMA3, "rope_theta": 5000.0})
    plain = 1 / 5000.0 ** (np.arange(0, 16, 2) / 16)
    factors = plain / built.model.rotary_emb.inv_freq.numpy()
    weights = GgufWeights(write_model(tmp_path / "m.gguf", built, "llama", factors=factors))
    assert [rope.kind for rope, _ in weights.spec.rotations] == ["factors"]
    close(Stages(weights).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


@pytest.mark.parametrize(("kind", "name"), [("linear", "linear"), ("yarn", "yarn")])
def test_gguf_with_rope_scaling(kind: str, name: str, tmp_path: Path) -> None:
    built = tiny.model("qwen2", rope_parameters={**tiny.YARN, "rope_type": kind, "rope_theta": 5000.0})
    extra = {"rope.scaling.type": name, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    weights = GgufWeights(write_model(tmp_path / "m.gguf", built, "qwen2", extra=extra))
    close(Stages(weights).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


@pytest.mark.parametrize("format", QUANTISED)
def test_every_format_as_floats(format: str, tmp_path: Path) -> None:
    built = tiny.model("llama", **WIDE)
    weights = GgufWeights(write_model(tmp_path / "m.gguf", built, "llama", format))
    assert weights.matrix("layers.0.q").format == format
    close(Stages(weights).logits(tiny.TOKENS[:40]), tiny.logits(built, tiny.TOKENS[:40]))


@pytest.mark.parametrize("format", sorted(BLOCKS))
def test_block_formats_as_they_are_stored(format: str, tmp_path: Path) -> None:
    """Only the activations are rounded, to eight bits."""
    built = tiny.model("llama", **WIDE)
    weights = GgufWeights(write_model(tmp_path / "m.gguf", built, "llama", format))
    ours, theirs = (
        Stages(weights, precision=Precision.AUTO).logits(tiny.TOKENS[:40]),
        tiny.logits(built, tiny.TOKENS[:40]),
    )
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


@pytest.mark.parametrize("format", QUANTISED)
def test_picking_rows(format: str) -> None:
    raw = blocks(format, (6, 512))
    matrix = StoredMatrix(format, raw, 512, np.array([5, 4, 3, 2, 1, 0]))
    np.testing.assert_array_equal(matrix.floats(), dequantised(format, raw)[::-1])
    np.testing.assert_array_equal(matrix.pick([1, 1, 5]), dequantised(format, raw)[[4, 4, 0]])


def test_names_that_a_model_lacks(tmp_path: Path) -> None:
    weights = SafetensorsWeights(tiny.saved(tiny.model("llama"), tmp_path))
    assert weights.vector("layers.0.q.bias") is None
    assert weights.vector("layers.0.q_norm") is None
    with pytest.raises(CorruptModel, match=r"no tensor model\.layers\.3\.self_attn\.q_proj\.weight"):
        weights.matrix("layers.3.q")


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    weights = SafetensorsWeights(tiny.saved(tiny.model("llama", tie_word_embeddings=True), tmp_path))
    np.testing.assert_array_equal(weights.matrix("head").floats(), weights.matrix("embed").floats())


def test_shapes(tmp_path: Path) -> None:
    spec = SafetensorsWeights(tiny.saved(tiny.model("qwen3", head_dim=32), tmp_path)).spec
    assert spec.matrices(1) == {
        "q": (128, 64), "k": (64, 64), "v": (64, 64), "o": (64, 128), "gate": (96, 64), "up": (96, 64), "down": (64, 96),
    }  # fmt: skip


def _changed(directory: Path, **changes: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return directory


def test_sizes_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    weights = SafetensorsWeights(_changed(tiny.saved(tiny.model("llama"), tmp_path), intermediate_size=112))
    with pytest.raises(CorruptModel, match=r"shape \[96, 64\] where the model's sizes say \[112, 64\]"):
        weights.matrix("layers.0.gate")


def test_a_directory_without_weights(tmp_path: Path) -> None:
    (tiny.saved(tiny.model("llama"), tmp_path) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '"llama"', "null", "\xff"])
def test_configurations_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptModel):
        open_weights(tmp_path)


def test_a_configuration_that_begins_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = tiny.saved(tiny.model("llama"), tmp_path) / "config.json"
    spec = open_weights(tmp_path).spec
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert open_weights(tmp_path).spec == spec


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_weights(tmp_path / "none.gguf")
    with pytest.raises(UserError, match=r"no config\.json"):
        open_weights(tmp_path)


def test_a_missing_norm(tmp_path: Path) -> None:
    built = tiny.model("llama")
    state = {n: t.detach().numpy() for n, t in built.state_dict().items() if n != "model.layers.1.input_layernorm.weight"}
    tiny.saved(built, tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CorruptModel, match=r"no tensor model\.layers\.1\.input_layernorm\.weight"):
        Stages(SafetensorsWeights(tmp_path))


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="gpt_neox"):
        open_weights(_changed(tiny.saved(tiny.model("llama"), tmp_path), model_type="gpt_neox"))


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    built = tiny.model("qwen2").to(torch.bfloat16)
    weights = SafetensorsWeights(tiny.saved(built, tmp_path))
    theirs = built.model.layers[1].self_attn.k_proj
    np.testing.assert_array_equal(weights.matrix("layers.1.k").floats(), theirs.weight.detach().float().numpy())
    np.testing.assert_array_equal(weights.vector("layers.1.k.bias"), theirs.bias.detach().float().numpy())
