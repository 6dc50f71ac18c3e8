"""The gradient of the experts' weights, against torch's automatic one and against finite differences, both in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.triton import Gating, top_k_gating
from tests.support.gating_reference import FAMILIES, reference_weights
from tests.support.gpu import DEVICE, normal_values

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]  # NumPy's, of NaN and infinity

SCORES = ("softmax", "sigmoid", "softmax of the chosen")


def gradients(logits: torch.Tensor, how: Gating, bias: torch.Tensor | None = None, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours, and torch's for the same choice in double precision."""
    leaf = logits.detach().clone().requires_grad_()
    weights, ids = top_k_gating(leaf, how, bias)
    upstream = normal_values(*weights.shape, seed=seed)
    (ours,) = torch.autograd.grad(weights, leaf, upstream)
    wide = logits.detach().double().requires_grad_()
    (theirs,) = torch.autograd.grad(reference_weights(wide, how, ids), wide, upstream.double())
    assert ours.dtype == logits.dtype
    return ours, theirs


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Off by the rounding to the type of the logits, and by what cancels in double precision."""
    unit = torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours.double(), theirs, rtol=0.51 * unit, atol=1e-13)


@settings(max_examples=30, deadline=None)
@given(
    experts=st.sampled_from((1, 2, 5, 32, 60, 256)),
    chosen=st.integers(1, 16),
    scores=st.sampled_from(SCORES),
    renormalised=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 99),
)
def test_torch_has_the_same_gradient(
    experts: int, chosen: int, scores: Any, renormalised: bool, scale: float, dtype: torch.dtype, seed: int
) -> None:
    how = Gating(min(chosen, experts), scores, renormalised, scale)
    assert_close(*gradients(normal_values(3, experts, seed=seed, deviation=3.0, dtype=dtype), how))


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_of_models(family: str) -> None:
    experts, how, biased = FAMILIES[family]
    bias = normal_values(experts, seed=2, deviation=0.1) if biased else None
    assert_close(*gradients(normal_values(3, experts, seed=1, deviation=2.0), how, bias))


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("renormalised", [False, True])
def test_finite_differences(scores: Any, renormalised: bool) -> None:
    how, step = Gating(3, scores, renormalised, scale=1.5), 1e-5
    logits = normal_values(2, 7, deviation=2.0)
    ids = top_k_gating(logits, how)[1]
    upstream = normal_values(2, 3, seed=5).double()
    ours, _ = gradients(logits, how)

    def loss(at: torch.Tensor) -> torch.Tensor:
        """Of each row."""
        return (reference_weights(at, how, ids) * upstream).sum(1)

    for expert in range(7):
        moved = torch.zeros(7, dtype=torch.float64, device=DEVICE)
        moved[expert] = step
        slope = (loss(logits.double() + moved) - loss(logits.double() - moved)) / (2 * step)
        torch.testing.assert_close(ours[:, expert].double(), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scores", SCORES)
def test_experts_that_do_not_count_have_none(scores: Any) -> None:
    """All of a plain softmax do, since they share its denominator."""
    logits, how = normal_values(3, 12), Gating(2, scores, renormalised=True)
    ours, _ = gradients(logits, how)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top_k_gating(logits, how)[1], True)
    assert (ours[~chosen] == 0).all() and (ours[chosen] != 0).all()
    plain, _ = gradients(logits, Gating(2))
    assert (plain != 0).all()


def test_other_strides() -> None:
    wide, how = normal_values(16, 6), Gating(3, "sigmoid", renormalised=True)
    ours, theirs = gradients(wide, how)
    leaf = wide.T.contiguous().T.requires_grad_()
    weights, _ = top_k_gating(leaf, how)
    weights.backward(normal_values(*weights.shape, seed=5).T.contiguous().T)
    assert leaf.grad is not None and torch.equal(leaf.grad, ours)
    assert_close(ours, theirs)
    (expanded,) = torch.autograd.grad(top_k_gating(leaf, how)[0].sum(), leaf)  # a gradient of stride 0
    torch.testing.assert_close(expanded, torch.zeros_like(expanded), rtol=0, atol=1e-6)  # of weights whose sum is one


def test_no_rows_and_no_second_derivative() -> None:
    empty = torch.empty((0, 8), device=DEVICE, requires_grad=True)
    (gradient,) = torch.autograd.grad(top_k_gating(empty, Gating(2))[0].sum(), empty)
    assert gradient.shape == (0, 8)
    logits = normal_values(2, 8).requires_grad_()
    weights, ids = top_k_gating(logits, Gating(2))
    assert not ids.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(weights.sum(), logits, create_graph=True)
