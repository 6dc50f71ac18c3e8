"""Trained Mixture-of-Experts models, made of SmolLM2: in float32 they say what it says, and rounded they stay as near to that as it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from shoal.config import Precision
from shoal.models.weights import GgufWeights, Weights
from shoal.text.tokenizer import Tokenizer
from tests.support import upcycled
from tests.support.prompts import QUESTIONS
from tests.support.stages import Stages, logits_in_turn

pytestmark = [pytest.mark.slow, pytest.mark.real]

LENGTH = 32
MODELS: dict[str, tuple[Callable[[Path], Path], float, float]] = {
    "equal experts": (upcycled.mixtral, 1e-4, 1),
    "slices": (lambda source: upcycled.mixtral(source, "slices"), 1e-3, 1),
    "slices and a shared expert": (lambda source: upcycled.qwen2_moe(source, 1), 1e-3, 1),
    "two sets of slices and a shared expert": (lambda source: upcycled.qwen2_moe(source, 2), 1e-3, 0.8),
    "experts that differ": (lambda source: upcycled.mixtral(source, "perturbed"), 1e-3, 0),
}
"""How each is made; how far its logits may be from those of the dense model; and for which part of the tokens, which is not all where a token
may lie between two sets of experts."""


@pytest.fixture(scope="module")
def answers(smollm2: Path, smollm2_weights: GgufWeights) -> list[list[int]]:
    """Conversations in which the dense model has answered."""
    tokenizer = Tokenizer.open(smollm2, smollm2_weights.file.meta)
    stages = Stages(smollm2_weights, precision=Precision.AUTO, threads=2)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    return [prompt + stages.afresh().greedy(prompt, LENGTH) for prompt in prompts]


def logits(weights: Weights, answers: list[list[int]], precision: Precision) -> np.ndarray:
    """Of the answers' tokens, each after those before it."""
    return np.concatenate([each[-LENGTH - 1 : -1] for each in logits_in_turn(weights, answers, precision)])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def dense(smollm2_weights: GgufWeights, answers: list[list[int]]) -> np.ndarray:
    return logits(smollm2_weights, answers, Precision.FP32)


class Mixture(NamedTuple):
    weights: Weights
    exact: np.ndarray
    """Logits in float32."""
    tolerance: float
    alike: float


@pytest.fixture(scope="module", params=MODELS)
def mixture(request: pytest.FixtureRequest, smollm2: Path, answers: list[list[int]]) -> Mixture:
    make, tolerance, alike = MODELS[request.param]
    weights = GgufWeights(make(smollm2))
    return Mixture(weights, logits(weights, answers, Precision.FP32), tolerance, alike)


def test_logits_are_those_of_the_dense_model(mixture: Mixture, dense: np.ndarray) -> None:
    alike = np.isclose(mixture.exact, dense, atol=mixture.tolerance, rtol=1e-4).all(axis=1)
    assert alike.mean() >= mixture.alike
    assert alike.any() == bool(mixture.alike)


@pytest.mark.parametrize("precision", [Precision.AUTO, Precision.Q8, Precision.Q4])
def test_rounded_weights_lose_no_more_than_dense_ones(mixture: Mixture, answers: list[list[int]], precision: Precision) -> None:
    rounded = logits(mixture.weights, answers, precision)
    assert 0 < distance(rounded, mixture.exact) < 0.12
    # The dense model itself keeps 0.953 to 0.958 of its 192 most likely tokens: the others lie between two that are nearly as likely.
    assert np.mean(rounded.argmax(-1) == mixture.exact.argmax(-1)) >= 0.92
