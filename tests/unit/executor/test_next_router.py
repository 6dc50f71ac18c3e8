"""A router in NumPy, on the kernels' layout, chooses what its matrix says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.executor.next_router import NextRouter
from shoal.executor.packing import StoredTensors
from shoal.models.spec import Experts
from shoal.models.weights import SafetensorsWeights
from shoal.native import reference
from tests.support import tiny, tiny_families

FAMILIES = ["mixtral", "qwen3 moe", "deepseek v3", "gpt-oss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_chooses_the_experts_of_the_largest_scores(family: str, tmp_path: Any) -> None:
    make = tiny_families if family in tiny_families.SIZES else tiny
    weights = SafetensorsWeights(tiny.saved(make.model(family), tmp_path))
    spec = weights.spec
    layer = max(i for i, each in enumerate(spec.layers) if isinstance(each.feed_forward, Experts))
    kind = spec.layers[layer].feed_forward
    assert isinstance(kind, Experts)
    name = f"layers.{layer}."
    hidden = np.random.default_rng(0).standard_normal((3, spec.hidden), np.float32)
    norm = weights.vector(name + "mlp_norm")
    assert norm is not None
    logits = reference.norm(hidden, norm, spec.eps) @ weights.matrix(name + "router").pick(np.arange(kind.count)).astype(np.float32).T
    if (bias := weights.vector(name + "router.bias")) is not None:
        logits = logits + bias
    if kind.routing.selection_bias:
        bias = weights.vector(name + "selection_bias")
        assert kind.routing.scores == "sigmoid" and bias is not None
        logits = 1 / (1 + np.exp(-logits)) + bias
    expected = np.argsort(-logits, axis=1)[:, : kind.routing.chosen]
    router = NextRouter(StoredTensors(weights, Precision.Q4), spec, layer)
    assert [router.choices(row[None]) for row in hidden] == expected.tolist()
    assert set(router.choices(hidden)) == set(expected.ravel().tolist())
    firsts = list(dict.fromkeys(expected[:, 0].tolist()))
    assert router.choices(hidden)[: len(firsts)] == firsts
