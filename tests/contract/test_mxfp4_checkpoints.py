"""Checkpoints of experts in MXFP4, as gpt-oss is published: what they stand for is what is computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shoal.config import Precision
from shoal.errors import CorruptModel
from shoal.executor.precision import executed
from shoal.models.weights import SafetensorsWeights
from tests.support import tiny, tiny_families
from tests.support.stages import Stages

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

pytestmark = pytest.mark.slow


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [experts, n, k / 32, 16], scales [experts, n, k / 32], and what they stand for, of a weight [experts, n, k]."""
    experts, n, k = weight.shape
    cells = weight.reshape(experts, n, k // 32, 32)
    exponent = np.ceil(np.log2(np.abs(cells).max(-1) / 6))
    scaled = cells / np.exp2(exponent)[..., None]
    codes = np.abs(scaled[..., None] - VALUES).argmin(-1).astype(np.uint8)
    right = VALUES[codes] * np.exp2(exponent)[..., None]
    packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed, (exponent + 127).astype(np.uint8), right.reshape(weight.shape).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    """The right logits, and the folder."""
    built, folder = tiny_families.model("gpt-oss"), tmp_path_factory.mktemp("mxfp4")
    tiny.saved(built, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        blocks, scales, right = quantise(np.ascontiguousarray(tensors.pop(name).transpose(0, 2, 1)))  # plain ones lie on their side
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        built.get_parameter(name).data.copy_(torch.from_numpy(right.transpose(0, 2, 1)))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    return tiny.logits(built, tiny.TOKENS), folder


def test_what_the_codes_stand_for(checkpoint: tuple[np.ndarray, Path]) -> None:
    right, folder = checkpoint
    np.testing.assert_allclose(Stages(SafetensorsWeights(folder), 2).logits(tiny.TOKENS, 30), right, atol=1e-4, rtol=1e-4)


def test_experts_stay_at_four_bits(checkpoint: tuple[np.ndarray, Path]) -> None:
    right, folder = checkpoint
    weights = SafetensorsWeights(folder)
    near = Stages(weights, precision=Precision.AUTO).logits(tiny.TOKENS)
    distance = np.linalg.norm(near - right, axis=1) / np.linalg.norm(right, axis=1)
    assert 0 < np.median(distance[:16]) < 0.06  # of rows before many others: a rounded row may choose another expert
    assert weights.format("layers.0.experts.3.gate") == "mxfp4"
    assert executed("mxfp4", 64, Precision.AUTO) == "q4"


@pytest.mark.parametrize("part", ["_blocks", "_scales"])
def test_a_missing_part_is_named(checkpoint: tuple[np.ndarray, Path], part: str, tmp_path: Path) -> None:
    _, folder = checkpoint
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"model.layers.1.mlp.experts.down_proj{part}"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CorruptModel, match=r"no tensor model\.layers\.1\.mlp\.experts\.down_proj"):
        SafetensorsWeights(tmp_path).matrix("layers.1.experts.0.down")
