"""Checkpoints whose matrices GPTQ or AWQ packed: what they stand for is what is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from shoal.config import Precision
from shoal.models.weights import SafetensorsWeights
from tests.support import tiny
from tests.support.stages import Stages

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

pytestmark = pytest.mark.slow


def packed(values: np.ndarray, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """int32 [rows, columns / 8] of codes [rows, columns]."""
    cells = values.astype(np.uint32).reshape(len(values), -1, 8)
    out = np.zeros(cells.shape[:2], np.uint32)
    for at, value in enumerate(order):
        out |= cells[..., value] << np.uint32(4 * at)
    return out.view(np.int32)


def quantise(weight: np.ndarray, method: str, act_order: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The tensors of a matrix [n, k], and the matrix that they stand for."""
    n, k = weight.shape
    idx = np.arange(k) // GROUP
    if act_order:
        idx = np.random.default_rng(0).permutation(idx)
    scales, zeros, codes = np.empty((k // GROUP, n), np.float16), np.empty((k // GROUP, n), np.int64), np.empty((k, n), np.int64)
    for group in range(k // GROUP):
        part = weight[:, idx == group]
        low, high = part.min(1), part.max(1)
        scales[group] = ((high - low) / 15).astype(np.float16)
        zeros[group] = np.clip(np.rint(-low / scales[group].astype(np.float32)), 1, 15)
        codes[idx == group] = np.clip(np.rint(part.T / scales[group].astype(np.float32)) + zeros[group], 0, 15)
    right = (codes - zeros[idx]) * scales[idx].astype(np.float32)
    if method == "gptq":
        made = {"qweight": packed(codes.T).T.copy(), "qzeros": packed(zeros - 1), "g_idx": idx.astype(np.int32)}
    else:
        made = {"qweight": packed(codes, AWQ_ORDER), "qzeros": packed(zeros, AWQ_ORDER)}
    return {**made, "scales": scales}, right.T.astype(np.float32)


def checkpoint(family: str, method: str, folder: Path, act_order: bool = False, **changes: Any) -> Any:
    """A tiny checkpoint whose layers' matrices are packed; transformers' model of what they stand for."""
    built = tiny.model(family, **changes)
    tiny.saved(built, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith("model.layers") and "_proj." in name and tensors[name].ndim == 2]:
        made, right = quantise(tensors.pop(name), method, act_order)
        tensors |= {f"{name.removesuffix('weight')}{part}": np.ascontiguousarray(values) for part, values in made.items()}
        built.get_parameter(name).data.copy_(torch.from_numpy(right))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": method,
        "bits": 4,
        "group_size": GROUP,
        "desc_act": act_order,
        "version": "gemm",
        "zero_point": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return built


@pytest.mark.parametrize(
    ("family", "method", "act_order", "changes"),
    [
        ("llama", "gptq", False, {}),
        ("llama", "gptq", True, {}),
        ("qwen2", "awq", False, {}),
        ("phi3", "gptq", False, {"sliding_window": None}),
        ("phi3", "awq", False, {"sliding_window": None}),
    ],
)
def test_what_the_codes_stand_for(family: str, method: str, act_order: bool, changes: dict[str, Any], tmp_path: Path) -> None:
    built = checkpoint(family, method, tmp_path, act_order, **changes)
    weights = SafetensorsWeights(tmp_path)
    right = tiny.logits(built, tiny.TOKENS)
    np.testing.assert_allclose(Stages(weights, 2).logits(tiny.TOKENS), right, atol=1e-4, rtol=1e-4)
    near = Stages(weights, precision=Precision.AUTO).logits(tiny.TOKENS)
    assert 0 < np.linalg.norm(near - right) / np.linalg.norm(right) < 0.06
    assert weights.format("layers.0.q") == ("f32" if act_order else f"u4g{GROUP}")
