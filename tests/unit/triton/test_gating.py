"""Which experts top-k gating chooses, and their weights, against torch: the same experts always, the same bits of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.triton import Gating, top_k_gating
from tests.support.gating_reference import FAMILIES, reference_choice, reference_weights
from tests.support.gpu import DEVICE, normal_values

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]  # NumPy's, of NaN and infinity

DTYPES = (torch.float32, torch.bfloat16)
EXPERTS = (1, 2, 3, 8, 17, 60, 64, 100, 128, 160, 255, 256)


@st.composite
def gatings(draw: st.DrawFn) -> tuple[int, Gating]:
    """A number of experts, and settings that fit it."""
    experts = draw(st.sampled_from(EXPERTS))
    groups = draw(st.sampled_from([n for n in range(1, experts + 1) if experts % n == 0]))
    groups_chosen = draw(st.integers(1, groups))
    return experts, Gating(
        draw(st.integers(1, min(16, experts // groups * groups_chosen))),
        draw(st.sampled_from(["softmax", "sigmoid", "softmax of the chosen"])),
        draw(st.booleans()),
        draw(st.sampled_from([1.0, 2.5, 0.1])),
        groups,
        groups_chosen,
        draw(st.sampled_from(["best", "best two"])),
    )


def made_logits(kind: str, rows: int, experts: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = normal_values(rows, experts, seed=seed)
    if kind == "ties":
        values = (values * 2).round() / 2
    if kind == "saturated":  # scores that are 0 or 1, and -0 beside 0
        values = (values * 2).round() * 1000
    return values.to(dtype)


def units_apart(got: torch.Tensor, wanted: torch.Tensor) -> int:
    """Units in the last place, at most."""
    assert torch.equal(got.isnan(), wanted.isnan())
    return int((got.nan_to_num().view(torch.int32) - wanted.nan_to_num().view(torch.int32)).abs().max().item())


@settings(max_examples=120, deadline=None)
@given(
    how=gatings(),
    kind=st.sampled_from(["normal", "ties", "saturated"]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_chooses_what_torch_chooses(how: tuple[int, Gating], kind: str, biased: bool, dtype: torch.dtype, rows: int, seed: int) -> None:
    """Weights of one unit in the last place more or less are let pass: of 10^8, one is that."""
    experts, gating = how
    logits = made_logits(kind, rows, experts, dtype, seed)
    bias = (normal_values(experts, seed=seed + 1) * 4).round() / 8 if biased else None
    weights, ids = top_k_gating(logits, gating, bias)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int64
    wanted = reference_choice(logits, gating, bias)
    assert torch.equal(ids, wanted)
    assert units_apart(weights, reference_weights(logits, gating, wanted).float()) <= 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_settings_of_models(family: str, dtype: torch.dtype) -> None:
    experts, gating, biased = FAMILIES[family]
    logits = normal_values(5, experts, seed=1, deviation=2.0, dtype=dtype)
    bias = normal_values(experts, seed=2, deviation=0.1) if biased else None
    weights, ids = top_k_gating(logits, gating, bias)
    wanted = reference_choice(logits, gating, bias)
    assert torch.equal(ids, wanted)
    assert torch.equal(weights, reference_weights(logits, gating, wanted).float())


def test_what_torch_topk_gives_in_float32() -> None:
    """Logits a twentieth apart, which no rounding brings out of order."""
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(row)) for row in range(4)])
    logits = (order.float() / 20).to(DEVICE)
    weights, ids = top_k_gating(logits, Gating(6, renormalised=True))
    wanted, wanted_ids = torch.softmax(logits, -1).topk(6)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted / wanted.sum(-1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "softmax of the chosen"])
def test_of_equal_scores_the_lower_expert_is_taken(scores: Any) -> None:
    logits = torch.tensor([[0.0, -0.0, 1.0, 0.0, 1.0, -0.0]], device=DEVICE)
    assert top_k_gating(logits, Gating(5, scores))[1].tolist() == [[2, 4, 0, 1, 3]]
    assert top_k_gating(logits, Gating(2, scores, groups=3, groups_chosen=1))[1].tolist() == [[2, 3]]  # its best is that of the third
    assert top_k_gating(torch.tensor([[40.0, 50.0, 60.0]], device=DEVICE), Gating(2, "sigmoid"))[1].tolist() == [[0, 1]]  # all are 1


def test_a_group_may_have_one_expert_and_be_scored_by_two() -> None:
    logits = normal_values(3, 16)
    gating = Gating(4, "sigmoid", groups=16, groups_chosen=5, group_score="best two")
    assert torch.equal(top_k_gating(logits, gating)[1], top_k_gating(logits, Gating(4, "sigmoid"))[1])


def test_a_group_of_two_is_scored_by_both() -> None:
    logits = torch.tensor([[3.0, 0.0, 2.0, 2.0]], device=DEVICE)
    expected: dict[Any, list[int]] = {"best": [0, 1], "best two": [2, 3]}
    for group_score, wanted in expected.items():
        gating = Gating(2, "softmax of the chosen", groups=2, groups_chosen=1, group_score=group_score)
        assert top_k_gating(logits, gating)[1].tolist() == [wanted]


def test_a_closed_group_counts_as_much_as_a_score_of_minus_infinity() -> None:
    """As in the kernels for processors: then the lower expert is taken, though its group is closed."""
    bias = torch.tensor([0.0, 0.0, 0.0, -torch.inf], device=DEVICE)
    gating = Gating(2, groups=2, groups_chosen=1)
    logits = torch.tensor([[0.0, 0.0, 9.0, 8.0]], device=DEVICE)
    assert top_k_gating(logits, gating, bias)[1].tolist() == reference_choice(logits, gating, bias).tolist() == [[2, 0]]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid", "softmax of the chosen"])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_row_with_a_nan_has_experts_that_there_are(scores: Any, groups: int) -> None:
    logits = normal_values(3, 8)
    clean = top_k_gating(logits, Gating(2, scores, groups=groups, groups_chosen=max(groups // 2, 1)))
    logits[1, 5] = torch.nan
    gating = Gating(2, scores, groups=groups, groups_chosen=max(groups // 2, 1))
    weights, ids = top_k_gating(logits, gating)
    assert torch.equal(weights[::2], clean[0][::2]) and torch.equal(ids[::2], clean[1][::2])
    assert ids[1, 0] == (0 if scores == "softmax" else 5)  # of all scores, or of the highest
    assert len(set(ids[1].tolist())) == 2 and weights[1, 0].isnan()
    assert torch.equal(ids, reference_choice(logits, gating))


def test_nans_are_alike_whatever_their_bits() -> None:
    bits = torch.tensor([[0x3F800000, -1, 0x7FC00000, 0x7F800000]], dtype=torch.int32, device=DEVICE)  # 1, NaN, NaN, infinity
    for scores in ("sigmoid", "softmax of the chosen"):
        assert top_k_gating(bits.view(torch.float32), Gating(4, scores))[1].tolist() == [[1, 2, 3, 0]]


def test_subnormal_logits_differ() -> None:
    logits = torch.tensor([[0.0, 1e-39, 2e-39, -1e-39]], device=DEVICE)
    for given_logits in (logits, logits.bfloat16()):
        assert top_k_gating(given_logits, Gating(4, "softmax of the chosen"))[1].tolist() == [[2, 1, 0, 3]]


def test_infinite_logits() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf], [0.0, torch.inf, 3.0, 1.0]], device=DEVICE)
    for scores in ("softmax", "sigmoid", "softmax of the chosen"):
        gating = Gating(3, scores)
        weights, ids = top_k_gating(logits, gating)
        assert torch.equal(ids, reference_choice(logits, gating))
        torch.testing.assert_close(weights, reference_weights(logits, gating, ids).float(), rtol=0, atol=0, equal_nan=True)


def test_no_row_depends_on_what_shares_its_call() -> None:
    logits, gating = normal_values(37, 24), Gating(3, "sigmoid", renormalised=True, groups=3, groups_chosen=2)
    weights, ids = top_k_gating(logits, gating)
    for row in (0, 9, 36):
        alone = top_k_gating(logits[row : row + 1], gating)
        assert torch.equal(alone[0][0], weights[row]) and torch.equal(alone[1][0], ids[row])


def test_other_strides() -> None:
    wide, bias = normal_values(24, 10), normal_values(48, seed=1)
    gating = Gating(3, renormalised=True)
    for logits in (wide.T, wide.T[::3], wide[::2, ::2], wide[:1].expand(4, -1)):
        some = bias[::2][: logits.shape[1]]
        for got, wanted in zip(top_k_gating(logits, gating, some), top_k_gating(logits.clone(), gating, some.clone()), strict=True):
            assert torch.equal(got, wanted)


def test_groups_that_are_all_chosen_are_none() -> None:
    logits, gating = normal_values(4, 12), Gating(3, "sigmoid")
    for got, wanted in zip(top_k_gating(logits, replace(gating, groups=4, groups_chosen=4)), top_k_gating(logits, gating), strict=True):
        assert torch.equal(got, wanted)


def test_no_rows() -> None:
    weights, ids = top_k_gating(torch.empty((0, 8), device=DEVICE), Gating(2))
    assert weights.shape == ids.shape == (0, 2)
