"""What the functions refuse, with a message that says why, before a kernel starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shoal.triton import Gating, dequantise, int8_matmul, quantise, top_k_gating
from tests.support.gpu import DEVICE

LOGITS = torch.zeros((2, 12), device=DEVICE)
CODES, SCALE = torch.zeros((3, 4), dtype=torch.int8, device=DEVICE), torch.ones(3, device=DEVICE)
X = torch.zeros((2, 4), device=DEVICE)
ELSEWHERE = torch.zeros(12, device="meta")


@pytest.mark.parametrize(
    ("gating", "why"),
    [
        (Gating(0), "0 of 12 experts cannot be chosen: 1 to 12 can"),
        (Gating(13), "13 of 12 experts"),
        (Gating(2, groups=5), "12 experts cannot be in 5 groups"),
        (Gating(2, groups=0), "in 0 groups"),
        (Gating(2, groups=3, groups_chosen=4), "in 3 groups of which 4"),
        (Gating(2, groups=3, groups_chosen=0), "in 3 groups of which 0"),
        (Gating(5, groups=3, groups_chosen=1), "5 experts cannot be chosen from 1 groups that have 4"),
        (Gating(2, scale=0.0), "scale must be positive"),
        (Gating(2, scale=float("nan")), "scale must be positive"),
        (Gating(2, scale=1e39), "within float32"),
        (Gating(2, scale=1e-60), "within float32"),
    ],
)
def test_settings_that_do_not_fit(gating: Gating, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        top_k_gating(LOGITS, gating)


@pytest.mark.parametrize("field", ["scores", "group_score"])
def test_unknown_words(field: str) -> None:
    wrong: dict[str, Any] = {field: "tanh"}
    with pytest.raises(ValueError, match=f"{field} must be .*not 'tanh'"):
        top_k_gating(LOGITS, Gating(2, **wrong))


@pytest.mark.parametrize("number", [2.0, True, None])
def test_numbers_of_another_type(number: Any) -> None:
    with pytest.raises(TypeError, match="chosen must be an int"):
        top_k_gating(LOGITS, Gating(number))


@pytest.mark.parametrize(("experts", "chosen", "why"), [(257, 2, "1 to 256 experts, not 257"), (0, 1, "not 0"), (64, 17, "1 to 16 can")])
def test_more_than_the_kernel_takes(experts: int, chosen: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        top_k_gating(torch.zeros((1, experts), device=DEVICE), Gating(chosen))


BIAS = torch.zeros(12, device=DEVICE)
LISTS: Any = [[0.0]]
ROW: Any = "row"


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda: top_k_gating(LISTS, Gating(1)), TypeError, "logits must be a torch.Tensor, not list"),
        (lambda: top_k_gating(LOGITS.half(), Gating(2)), TypeError, "logits must be float32 or bfloat16, not float16"),
        (lambda: top_k_gating(LOGITS[0], Gating(2)), ValueError, r"2 dimensions; its shape is \(12,\)"),
        (lambda: top_k_gating(LOGITS.to_sparse(), Gating(2)), ValueError, "dense"),
        (lambda: top_k_gating(LOGITS, Gating(2), BIAS[1:]), ValueError, "11 values for 12 experts"),
        (lambda: top_k_gating(LOGITS, Gating(2), BIAS[None]), ValueError, "selection_bias must have 1 dimension;"),
        (lambda: top_k_gating(LOGITS, Gating(2), BIAS.bfloat16()), TypeError, "selection_bias must be float32"),
        (lambda: top_k_gating(LOGITS, Gating(2), ELSEWHERE), ValueError, "on one device; logits is on .*, selection_bias is on meta"),
        (lambda: top_k_gating(LOGITS.to("meta"), Gating(2)), ValueError, "logits is on meta: Triton's kernels run on a GPU"),
        (lambda: quantise(CODES), TypeError, "weights must be float32 or float16 or bfloat16, not int8"),
        (lambda: quantise(X[0]), ValueError, "weights must have 2 dimensions"),
        (lambda: quantise(X, ROW), ValueError, "per must be 'channel' or 'tensor', not 'row'"),
        (lambda: quantise(X + torch.nan), ValueError, "not finite"),
        (lambda: quantise(X + torch.inf, "tensor"), ValueError, "not finite"),
        (lambda: dequantise(X, SCALE), TypeError, "codes must be int8"),
        (lambda: dequantise(CODES[0], SCALE), ValueError, "codes must have 2 dimensions"),
        (lambda: dequantise(CODES, SCALE[:2]), ValueError, "2 scales; weights with 3 output channels have as many, or 1"),
        (lambda: dequantise(CODES, SCALE[0]), ValueError, "scale must have 1 dimension;"),
        (lambda: dequantise(CODES, SCALE.half()), TypeError, "scale must be float32"),
        (lambda: dequantise(CODES, SCALE, torch.float64), TypeError, "not in torch.float64"),
        (lambda: dequantise(CODES, SCALE.to("meta")), ValueError, "on one device"),
        (lambda: int8_matmul(X.double(), CODES, SCALE), TypeError, "x must be float32"),
        (lambda: int8_matmul(X[0], CODES, SCALE), ValueError, "x must have 2 dimensions"),
        (lambda: int8_matmul(X[:, 1:], CODES, SCALE), ValueError, "x has 3 values in a row, and the weights take 4"),
        (lambda: int8_matmul(X.clone().requires_grad_(), CODES, SCALE), ValueError, "no_grad"),
        (lambda: int8_matmul(X, CODES.to("meta"), SCALE), ValueError, "on one device"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(call: Callable[[], object], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        call()


def test_a_gradient_that_is_not_asked_for() -> None:
    with torch.no_grad():
        assert int8_matmul(X.clone().requires_grad_(), CODES, SCALE).shape == (2, 3)
