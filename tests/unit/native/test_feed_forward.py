"""The feed-forward parts of the kernels against double precision, on every instruction set: activations, norms around, experts and their choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.kernel_parts import (
    assert_it_does_not_matter_how,
    compiled,
    error,
    forward,
    module,
    normal,
    nothing_attended,
    on_every_isa,
)
from tests.support.kernel_reference import ACTIVATIONS, Mlp, Normed, Product, Routed

pytestmark = compiled
HIDDEN, KEPT = 64, (16, 16)
X = normal(45, HIDDEN)


def fed(block: Any, isa: str = "", **options: Any) -> Any:
    """What the block makes of X, and only it."""
    return forward([(nothing_attended(HIDDEN), block, KEPT)], X, isa=isa, **options)


@on_every_isa
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_gated_mlp(isa: str, activation: str, biased: bool) -> None:
    mlp = Mlp.random(HIDDEN, 48, 1, biased)
    mlp = Mlp(Product(mlp.gate.weight * 4, mlp.gate.bias), Product(mlp.up.weight * 4, mlp.up.bias), mlp.down)  # beyond the bounds of 7
    x = X.astype(np.float64)
    assert activation != "clamped" or (mlp.gate(x).max() > 7 and np.abs(mlp.up(x)).max() > 7)
    assert error(fed(module.Dense(module.Around(), mlp.made(), activation), isa), x + mlp(x, activation)) < 2e-6


NORMS = {
    "root mean square": Normed(normal(HIDDEN, seed=5)),
    "layer": Normed(normal(HIDDEN, seed=5), centred=True),
    "layer with a bias": Normed(normal(HIDDEN, seed=5), normal(HIDDEN, seed=6), centred=True),
}


@on_every_isa
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize(("before", "after", "scale"), [(True, False, 1.0), (False, True, 1.0), (True, True, 0.3), (False, False, 0.3)])
def test_norms_and_scales_around(isa: str, kind: str, before: bool, after: bool, scale: float) -> None:
    mlp, norm, x = Mlp.random(HIDDEN, 48, 1), NORMS[kind], X.astype(np.float64) + 1
    branch = mlp(norm(x) if before else x, "silu")
    around = module.Around(norm.made() if before else None, norm.made() if after else None, scale)
    got = forward([(nothing_attended(HIDDEN), module.Dense(around, mlp.made()), KEPT)], X + 1, isa=isa)
    assert error(got, x + scale * (norm(branch) if after else branch)) < 2e-6


# Experts

KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax renormalised": {"renormalised": True},
    "softmax scaled": {"scale": 2.5, "renormalised": True},
    "softmax of the chosen": {"softmax_after": True},
    "sigmoid": {"sigmoid": True},
    "sigmoid renormalised": {"sigmoid": True, "renormalised": True, "scale": 1.5},
    "groups by their best": {"groups": 4, "groups_chosen": 2},
    "groups by their two best": {"sigmoid": True, "renormalised": True, "groups": 2, "groups_chosen": 1, "group_by_two": True},
    "groups of one": {"groups": 8, "groups_chosen": 3, "group_by_two": True},
}


@on_every_isa
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chosen", [1, 3])
def test_how_experts_are_chosen_and_weighted(isa: str, kind: str, chosen: int) -> None:
    experts, x = Routed.random(chosen=chosen, how=KINDS[kind]), X.astype(np.float64)
    assert error(fed(experts.made(module.Around()), isa), x + experts(x)) < 2e-6


@on_every_isa
@pytest.mark.parametrize("kind", ["softmax", "sigmoid renormalised", "groups by their two best", "softmax of the chosen"])
def test_a_bias_counts_for_the_choice_alone(isa: str, kind: str) -> None:
    plain, x = Routed.random(chosen=2, how=KINDS[kind]), X.astype(np.float64)
    biased = Routed.random(chosen=2, how=KINDS[kind], selection_bias=normal(8, seed=3) - 1)
    assert any(plain.choose(row)[0] != biased.choose(row)[0] for row in x)
    assert error(fed(biased.made(module.Around()), isa), x + biased(x)) < 2e-6


@on_every_isa
@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize("gated", [False, True])
def test_a_shared_expert(isa: str, width: int, gated: bool) -> None:
    gate = Product.random(1, HIDDEN, 11) if gated else None
    experts, x = Routed.random(shared=Mlp.random(HIDDEN, width, 900), shared_gate=gate), X.astype(np.float64)
    assert error(fed(experts.made(module.Around()), isa), x + experts(x)) < 2e-6


@on_every_isa
@pytest.mark.parametrize("count", [1, 17, 40])
def test_any_number_of_experts_with_biases(isa: str, count: int) -> None:
    experts = Routed.random(
        count=count, width=48, chosen=min(4, count), biased=True, activation="clamped", how=KINDS["softmax of the chosen"]
    )
    x = X.astype(np.float64)
    assert error(fed(experts.made(module.Around()), isa), x + experts(x)) < 2e-6


def test_experts_within_norms_and_a_scale() -> None:
    experts, norm, x = Routed.random(), NORMS["root mean square"], X.astype(np.float64)
    got = fed(experts.made(module.Around(norm.made(), norm.made(), 0.3)))
    assert error(got, x + 0.3 * norm(experts(norm(x)))) < 2e-6


@on_every_isa
@pytest.mark.parametrize("how", [{}, {"sigmoid": True}, {"softmax_after": True}, {"groups": 4, "groups_chosen": 2}])
def test_of_equal_scores_the_lower_expert_is_taken(isa: str, how: dict[str, Any]) -> None:
    """All score alike, then neighbours in threes."""
    for each in (np.zeros(16, np.int64), np.arange(16) // 3):
        rows = normal(6, HIDDEN, seed=8)[each] * np.float32(0.1)
        experts = Routed(Product(rows), [Mlp.random(HIDDEN, 32, 100 + 10 * i) for i in range(16)], chosen=4, how=how)
        block, x = experts.made(module.Around()), X.astype(np.float64)
        assert error(fed(block, isa), x + experts(x)) < 2e-6
        wanted = np.zeros(16, np.uint64)
        for row in x:
            wanted[experts.choose(row)[0]] += 1
        assert np.array_equal(block.counts, wanted)


def test_rows_of_each_expert_are_counted() -> None:
    block = Routed.random(chosen=3).made(module.Around())
    assert block.counts.tolist() == [0] * 8
    fed(block)
    once = block.counts
    assert once.sum() == 3 * len(X)
    fed(block, threads=3)
    assert np.array_equal(block.counts, 2 * once)


@on_every_isa
@pytest.mark.parametrize("target", ["f32", "q8", "q4"])
def test_no_row_depends_on_what_shares_its_step(isa: str, target: str) -> None:
    norm = NORMS["root mean square"]
    experts = Routed.random(
        chosen=3, shared=Mlp.random(HIDDEN, 64, 900), shared_gate=Product.random(1, HIDDEN, 11), how=KINDS["groups by their best"]
    )
    around = module.Around(norm.made())
    layers = [
        (nothing_attended(HIDDEN), experts.made(around, target), KEPT),
        (
            nothing_attended(HIDDEN),
            module.Dense(module.Around(norm.made(), norm.made(), 0.5), Mlp.random(HIDDEN, 96, 1).made(target)),
            KEPT,
        ),
    ]
    assert_it_does_not_matter_how(layers, X, isa)


@on_every_isa
@pytest.mark.parametrize(("target", "most"), [("q8", 0.03), ("q4", 0.25)])
def test_rounded_experts_are_near(isa: str, target: str, most: float) -> None:
    experts, x = Routed.random(count=6, chosen=6, shared=Mlp.random(HIDDEN, 64, 900)), X.astype(np.float64)
    assert 0 < error(fed(experts.made(module.Around(), target), isa) - X, experts(x)) < most


@on_every_isa
@pytest.mark.parametrize("kind", ["softmax renormalised", "softmax of the chosen"])
def test_logits_far_apart(isa: str, kind: str) -> None:
    """Beyond what an exponential holds."""
    experts, x = Routed.random(how=KINDS[kind]), X.astype(np.float64)
    far = Routed(Product(experts.router.weight * 100), experts.experts, how=experts.how)
    assert far.router(x).max() > 200
    assert error(fed(far.made(module.Around()), isa), x + far(x)) < 2e-5
