"""Top-k gating chooses and weights as the reference does that the kernels for processors are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.triton import Gating, top_k_gating
from tests.support.gpu import DEVICE, normal_values
from tests.support.kernel_reference import Product, Routed

pytestmark = pytest.mark.slow

KINDS: dict[str, tuple[Gating, dict[str, Any]]] = {
    "softmax": (Gating(3, scale=2.5), {"scale": 2.5}),
    "softmax renormalised": (Gating(3, renormalised=True), {"renormalised": True}),
    "softmax of the chosen": (Gating(3, "softmax of the chosen"), {"softmax_after": True}),
    "sigmoid": (Gating(3, "sigmoid", renormalised=True), {"sigmoid": True, "renormalised": True}),
    "groups by their best": (Gating(3, groups=4, groups_chosen=2), {"groups": 4, "groups_chosen": 2}),
    "groups by their two best": (
        Gating(3, "sigmoid", groups=4, groups_chosen=2, group_score="best two"),
        {"sigmoid": True, "groups": 4, "groups_chosen": 2, "group_by_two": True},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
def test_the_same_experts_and_weights(kind: str, biased: bool) -> None:
    gating, how = KINDS[kind]
    logits = normal_values(8, 16, deviation=2.0)
    bias = normal_values(16, seed=3) if biased else None
    weights, ids = top_k_gating(logits, gating, bias)
    known = None if bias is None else bias.cpu().numpy()
    routed = Routed(Product(np.eye(16, dtype=np.float32)), [], chosen=3, how=how, selection_bias=known)
    assert logits.device.type == DEVICE.type
    for row, got, got_weights in zip(logits.cpu().double().numpy(), ids.tolist(), weights.tolist(), strict=True):
        wanted, wanted_weights = routed.choose(row)
        assert got == wanted
        assert got_weights == pytest.approx(wanted_weights, rel=1e-6)
