"""Which runtime runs a node's layers: the fastest that is here, timed once; and segments where the kernels are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import KvType, Precision, RuntimeName
from shoal.errors import ConfigError, UnsupportedModel
from shoal.executor import onnx_runtime, runtimes
from shoal.executor.segments import quantised
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import SafetensorsWeights
from tests.support import tiny, tiny_families
from tests.support.stages import Stages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsWeights:
    return SafetensorsWeights(tiny.saved(tiny.model("mistral", sliding_window=20), tmp_path_factory.mktemp("mistral")))


class Clock:
    """Layers of known speed, and how often they were timed."""

    def __init__(self, seconds: dict[RuntimeName, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[RuntimeName] = []
        monkeypatch.setattr(runtimes, "installed", lambda: list(seconds))
        monkeypatch.setattr(runtimes, "_made", lambda runtime, *rest: runtime)

        def score(runtime: Any, weights: Any, layer: int) -> float:
            self.timed.append(runtime)
            return seconds[runtime]

        monkeypatch.setattr(runtimes, "_score", score)


def choose(weights: SafetensorsWeights, home: Path, precision: Precision = Precision.Q8) -> RuntimeName:
    return runtimes.fastest(weights, 0, precision, 1, "", home)


def test_the_fastest_runtime_is_kept_and_remembered(weights: SafetensorsWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({RuntimeName.NATIVE: 2.0, RuntimeName.ONNXRUNTIME: 1.0, RuntimeName.OPENVINO: 3.0}, monkeypatch)
    assert choose(weights, tmp_path) is choose(weights, tmp_path) is RuntimeName.ONNXRUNTIME
    assert len(clock.timed) == 3
    choose(weights, tmp_path, Precision.FP32)
    assert len(clock.timed) == 6


def test_a_damaged_memory_is_made_anew(weights: SafetensorsWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock({RuntimeName.NATIVE: 1.0, RuntimeName.OPENVINO: 3.0}, monkeypatch)
    (tmp_path / "runtimes.json").write_text("{")
    assert choose(weights, tmp_path) is RuntimeName.NATIVE


def test_a_single_runtime_is_not_timed(weights: SafetensorsWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({RuntimeName.OPENVINO: 3.0}, monkeypatch)
    assert choose(weights, tmp_path) is RuntimeName.OPENVINO
    assert not clock.timed


def test_native_without_its_kernels_is_refused(weights: SafetensorsWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.executor.native_runtime.kernels", lambda: None)
    with pytest.raises(ConfigError, match="onnxruntime"):
        Stages(weights)


def test_every_runtime_here_is_really_timed(weights: SafetensorsWeights, tmp_path: Path) -> None:
    assert choose(weights, tmp_path) in runtimes.installed()


# What a runtime cannot run

LACKING = {
    "mixtral": r"experts \(Mixture-of-Experts\)",
    "deepseek v2 lite": "latent attention",
    "cohere2": "layer norms",
    "gemma2": "the activation gelu",
    "granite": "norms or sums elsewhere",
    "olmo2": "norms or sums elsewhere",
    "smollm3": "attention without rotation",
    "phi4 mini": "attention with partial rotation",
}


class _Unread:
    """Weights of which nothing may be read."""

    def __init__(self, weights: SafetensorsWeights) -> None:
        self.spec, self.check = weights.spec, weights.check


@pytest.mark.parametrize("name", LACKING)
def test_a_runtime_says_what_it_cannot_run_and_auto_never_picks_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = SafetensorsWeights(tiny.saved(tiny_families.model(name), tmp_path / "model"))
    for runtime in (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO):
        if runtime in runtimes.installed():
            with pytest.raises(UnsupportedModel, match=f"{runtime} cannot run this model: it has {LACKING[name]}.*; use --runtime native"):
                Stages(_Unread(weights), runtime=runtime)  # pyright: ignore[reportArgumentType]
    clock = Clock({RuntimeName.NATIVE: 2.0, RuntimeName.ONNXRUNTIME: 1.0}, monkeypatch)
    assert choose(weights, tmp_path) is RuntimeName.NATIVE
    assert not clock.timed
    Clock({RuntimeName.ONNXRUNTIME: 1.0}, monkeypatch)
    monkeypatch.setattr(runtimes, "missing", lambda: "there are no kernels")
    with pytest.raises(ConfigError, match=f"onnxruntime cannot run this model: it has {LACKING[name]}.*there are no kernels"):
        choose(weights, tmp_path)


# Segments


def test_segments_without_the_kernels_use_the_reference(weights: SafetensorsWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Stages(weights).logits(tiny.TOKENS)
    monkeypatch.setattr(onnx_runtime, "kernels", lambda: None)
    assert np.abs(Stages(weights, runtime=RuntimeName.ONNXRUNTIME).logits(tiny.TOKENS) - wanted).max() < 1e-4


@pytest.mark.parametrize("kv_type", [KvType.Q8, KvType.Q4])
def test_the_reference_does_not_round_keys_and_values(
    weights: SafetensorsWeights, kv_type: KvType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "kernels", lambda: None)
    monkeypatch.setattr(onnx_runtime, "missing", lambda: "there are no kernels")
    with pytest.raises(ConfigError, match=f"--kv-type {kv_type} needs the compiled kernels: there are no kernels, or use --kv-type bf16"):
        Stages(weights, runtime=RuntimeName.ONNXRUNTIME, kv_type=kv_type)


@pytest.mark.parametrize(("format", "bits"), [("q8_0", 8), ("q4_0", 4)])
def test_stored_blocks_are_taken_over_exactly(format: str, bits: int) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (6, 3 * (34 if bits == 8 else 18)), np.uint8)
    raw.reshape(6, 3, -1)[:, :, :2] = np.array([0.03], np.float16).view(np.uint8)
    stored = StoredMatrix(format, raw, 96)
    codes, scales = quantised([stored], bits)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(6, 3, 32)
    values = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    assert np.array_equal(values.reshape(6, 96), stored.floats())
