"""The runtimes compute the same model: ONNX segments on ONNX Runtime and OpenVINO beside the kernels; and the fastest is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision, RuntimeName
from shoal.errors import ConfigError
from shoal.executor import onnx_layers, runtimes
from shoal.executor.segments import quantised
from shoal.models.matrix import StoredMatrix
from shoal.models.weights import GgufWeights, SafetensorsWeights
from tests.support import tiny
from tests.support.stages import Stages

TOKENS = [(7 * i + 3) % 60 for i in range(45)]  # more than a KV block
ONNX = [RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO]
FAMILIES = {"llama": {"attention_bias": True}, "mistral": {"sliding_window": 20}, "qwen2": {}, "qwen3": {"head_dim": 32}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made = {f: tiny.saved(tiny.model(f, **changes), tmp_path_factory.mktemp(f)) for f, changes in FAMILIES.items()}
    return made.__getitem__


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("runtime", ONNX)
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_compute_what_the_kernels_compute(directory: Callable[[str], Path], family: str, runtime: RuntimeName) -> None:
    weights = SafetensorsWeights(directory(family))
    wanted = Stages(weights).logits(TOKENS)
    assert np.abs(Stages(weights, runtime=runtime).logits(TOKENS) - wanted).max() < 1e-4


@pytest.mark.parametrize("runtime", ONNX)
def test_segments_split_and_chunked(directory: Callable[[str], Path], runtime: RuntimeName) -> None:
    weights = SafetensorsWeights(directory("qwen3"))
    wanted = Stages(weights).logits(TOKENS)
    assert np.abs(Stages(weights, 2, runtime=runtime).logits(TOKENS, 13) - wanted).max() < 1e-4


@pytest.mark.parametrize("runtime", ONNX)
@pytest.mark.parametrize(("precision", "most"), [(Precision.Q8, 0.06), (Precision.Q4, 0.5)])
def test_quantised_segments(directory: Callable[[str], Path], runtime: RuntimeName, precision: Precision, most: float) -> None:
    weights = SafetensorsWeights(directory("llama"))
    exact = Stages(weights).logits(TOKENS)
    assert 0 < distance(Stages(weights, precision=precision, runtime=runtime).logits(TOKENS), exact) < most


def test_segments_without_the_kernels_use_the_reference(directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = SafetensorsWeights(directory("mistral"))
    wanted = Stages(weights).logits(TOKENS)
    monkeypatch.setattr(onnx_layers, "kernels", lambda: None)
    assert np.abs(Stages(weights, runtime=RuntimeName.ONNXRUNTIME).logits(TOKENS) - wanted).max() < 1e-4


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


@pytest.mark.real
@pytest.mark.parametrize("runtime", ONNX)
def test_trained_weights_agree_over_the_runtimes(smollm2_weights: GgufWeights, runtime: RuntimeName) -> None:
    exact = Stages(smollm2_weights, precision=Precision.FP32).logits(TOKENS)
    assert distance(Stages(smollm2_weights, precision=Precision.Q8, runtime=runtime).logits(TOKENS), exact) < 0.12


# The choice


class Clock:
    """Layers of known speed, and how often they were timed."""

    def __init__(self, seconds: dict[RuntimeName, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[RuntimeName] = []
        monkeypatch.setattr(runtimes, "installed", lambda: list(seconds))
        monkeypatch.setattr(runtimes, "_maker", lambda runtime, *rest: runtime)

        def score(runtime: Any, weights: Any, layer: int) -> float:
            self.timed.append(runtime)
            return seconds[runtime]

        monkeypatch.setattr(runtimes, "_score", score)


def choose(weights: SafetensorsWeights, home: Path, precision: Precision = Precision.Q8) -> RuntimeName:
    return runtimes.fastest(weights, range(1), precision, 1, "", home)


def test_the_fastest_runtime_is_kept_and_remembered(
    directory: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock({RuntimeName.NATIVE: 2.0, RuntimeName.ONNXRUNTIME: 1.0, RuntimeName.OPENVINO: 3.0}, monkeypatch)
    weights = SafetensorsWeights(directory("llama"))
    assert choose(weights, tmp_path) is choose(weights, tmp_path) is RuntimeName.ONNXRUNTIME
    assert len(clock.timed) == 3
    choose(weights, tmp_path, Precision.FP32)
    assert len(clock.timed) == 6


def test_a_damaged_memory_is_made_anew(directory: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock({RuntimeName.NATIVE: 1.0, RuntimeName.OPENVINO: 3.0}, monkeypatch)
    (tmp_path / "runtimes.json").write_text("{")
    assert choose(SafetensorsWeights(directory("llama")), tmp_path) is RuntimeName.NATIVE


def test_a_single_runtime_is_not_timed(directory: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock({RuntimeName.OPENVINO: 3.0}, monkeypatch)
    assert choose(SafetensorsWeights(directory("llama")), tmp_path) is RuntimeName.OPENVINO
    assert not clock.timed


def test_native_without_its_kernels_is_refused(directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.executor.native_layers.kernels", lambda: None)
    with pytest.raises(ConfigError, match="onnxruntime"):
        Stages(SafetensorsWeights(directory("llama")))


def test_every_runtime_here_is_really_timed(directory: Callable[[str], Path], tmp_path: Path) -> None:
    assert choose(SafetensorsWeights(directory("llama")), tmp_path) in runtimes.installed()
