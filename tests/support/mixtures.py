"""The tiny Mixture-of-Experts models that are held to what holds for dense ones, in each precision.

Their experts differ, and between them they have what is new in such models: softmax and sigmoid scores, groups and a bias for the choice,
a shared expert, a dense layer first, latent attention, sinks, windows in every other layer, biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from shoal.config import Precision
from shoal.models.weights import SafetensorsWeights, Weights
from tests.support import tiny, tiny_families

LAYERS = 6
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "deepseek v3": {"qk_nope_head_dim": 32},  # so that all rows are whole blocks
    "gpt-oss": {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)},
}
PRECISIONS = (Precision.FP32, Precision.Q8, Precision.Q4)


class Case(NamedTuple):
    """A model, and how its rows are multiplied."""

    weights: Weights
    precision: Precision


EVERY = [pytest.param((name, precision), id=f"{name} {precision}") for name in MODELS for precision in PRECISIONS]
"""Parameters of a fixture that answers `Maker`'s cases."""


class Maker:
    """Makes each model once. folder: a new directory by a name."""

    def __init__(self, folder: Callable[[str], Any]) -> None:
        self._folder = folder
        self._made: dict[str, Weights] = {}

    def built(self, name: str) -> Any:
        """As transformers has it."""
        return tiny_families.model(name, num_hidden_layers=LAYERS, **MODELS[name])

    def __call__(self, name: str, precision: Precision) -> Case:
        if name not in self._made:
            directory = self._folder(name.replace(" ", "-"))
            self._made[name] = SafetensorsWeights(tiny.saved(self.built(name), directory))
        return Case(self._made[name], precision)
