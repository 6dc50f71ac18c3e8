"""INT8 weights: rounding, dequantisation with torch's bits, and the product against double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.triton import dequantise, int8_matmul, quantise
from tests.support.gpu import DEVICE, normal_values

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]  # NumPy's, of NaN and infinity

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PER = ("channel", "tensor")
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Half a unit in the last place, relative."""


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_are_rounded_to_the_nearest_code(per: Any, dtype: torch.dtype) -> None:
    weights = normal_values(7, 33, dtype=dtype)
    weights[3] *= 100
    codes, scale = quantise(weights, per)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == ((7,) if per == "channel" else (1,))
    largest = weights.float().abs().amax(1) if per == "channel" else weights.float().abs().max().reshape(1)
    assert torch.equal(scale, largest / torch.full_like(largest, 127))
    assert codes.abs().max() == 127
    assert ((codes * scale[:, None].double() - weights.double()).abs() <= scale[:, None].double() * 0.5000001).all()


def test_halves_go_to_the_even_code_and_signs_are_symmetric() -> None:
    weights = torch.tensor([[127.0, 0.5, 1.5, 2.5, 126.5]], device=DEVICE)
    assert quantise(weights)[0].tolist() == [[127, 0, 2, 2, 126]]
    assert quantise(-weights)[0].tolist() == [[-127, 0, -2, -2, -126]]


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 3e38])
def test_zeros_and_magnitudes_at_the_ends(per: Any, size: float) -> None:
    weights = torch.tensor([[size, -size, 0.0], [0.0, 0.0, 0.0]], device=DEVICE)
    codes, scale = quantise(weights, per)
    assert (scale >= torch.finfo(torch.float32).tiny).all()
    made = dequantise(codes, scale)
    assert torch.isfinite(made).all() and (made[1] == 0).all()
    assert (made - weights).abs().max() <= scale.max() / 2


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from((1, 3, 16, 70)),
    columns=st.sampled_from((1, 31, 64, 600)),
    per=st.sampled_from(PER),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-45, 30),
    seed=st.integers(0, 99),
)
def test_dequantised_weights_have_torchs_bits(rows: int, columns: int, per: Any, dtype: torch.dtype, exponent: int, seed: int) -> None:
    codes, scale = quantise(normal_values(rows, columns, seed=seed))
    scale = (scale if per == "channel" else scale[:1]) * 2.0**exponent
    assert torch.equal(dequantise(codes, scale, dtype), (codes.float() * scale[:, None]).to(dtype))


def test_every_code_in_bfloat16() -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8, device=DEVICE).expand(40, -1)
    scale = torch.cat([normal_values(39).abs(), torch.tensor([torch.nan], device=DEVICE)])
    torch.testing.assert_close(
        dequantise(codes, scale, torch.bfloat16), (codes.float() * scale[:, None]).bfloat16(), rtol=0, atol=0, equal_nan=True
    )


def test_halves_go_to_the_even_bfloat16_and_nan_stays_nan() -> None:
    codes = torch.ones((3, 1), dtype=torch.int8, device=DEVICE)
    every_bit = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    scale = torch.cat([torch.tensor([1 + 2**-8, 1 + 3 * 2**-8]), every_bit]).to(DEVICE)
    made = dequantise(codes, scale, torch.bfloat16)
    assert made[:2, 0].tolist() == [1.0, 1 + 2**-6] and made[2].isnan()


def assert_near(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Within what int8_matmul says."""
    got = int8_matmul(x, codes, scale)
    weights = codes.double() * scale[:, None].double()
    wanted, room = x.double() @ weights.T, x.double().abs() @ weights.abs().T
    assert got.dtype == x.dtype and got.shape == wanted.shape
    allowed = 2 * x.shape[1] * 2**-24 * room
    allowed = allowed + UNIT[x.dtype] * (wanted.abs() + allowed) + 2.0**-25 * (x.dtype == torch.float16)  # whose smallest are subnormal
    assert ((got.double() - wanted).abs() <= allowed).all()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from((1, 5, 16, 17, 70)),
    outputs=st.sampled_from((1, 32, 65)),
    inputs=st.sampled_from((1, 32, 130, 257)),
    per=st.sampled_from(PER),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_the_product_is_that_with_dequantised_weights(
    rows: int, outputs: int, inputs: int, per: Any, dtype: torch.dtype, seed: int
) -> None:
    codes, scale = quantise(normal_values(outputs, inputs, seed=seed, deviation=0.1), per)
    assert_near(normal_values(rows, inputs, seed=seed + 1, dtype=dtype), codes, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whole_numbers_are_exact(dtype: torch.dtype) -> None:
    x = torch.arange(-8, 8, device=DEVICE).expand(3, -1).to(dtype)
    codes = torch.tensor([[1] * 16, [-1] * 16, [127] + [0] * 15], dtype=torch.int8, device=DEVICE)
    assert int8_matmul(x, codes, torch.tensor([0.5], device=DEVICE)).tolist() == [[-4.0, 4.0, -508.0]] * 3


def test_other_strides() -> None:
    codes, scale = quantise(normal_values(40, 48))
    x = normal_values(48, 6, seed=1)
    assert torch.equal(int8_matmul(x.T, codes, scale), int8_matmul(x.T.contiguous(), codes, scale))
    for some, unit in ((codes.T, torch.cat([scale, scale])[:48]), (codes[::2, ::3], scale[::2]), (codes[:1].expand(5, -1), scale[:5])):
        assert torch.equal(dequantise(some, unit), some.float() * unit[:, None])
        assert_near(normal_values(3, some.shape[1], seed=2), some, unit)


def test_what_lies_beyond_a_row_is_not_read() -> None:
    codes, scale = quantise(normal_values(5, 40))
    wide = normal_values(3, 64, seed=1)
    wide[:, 40:] = torch.nan
    assert torch.equal(int8_matmul(wide[:, :40], codes, scale), int8_matmul(wide[:, :40].clone(), codes, scale))


@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(0, 5, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("per", PER)
def test_empty_shapes(rows: int, outputs: int, inputs: int, per: Any) -> None:
    codes, scale = quantise(torch.zeros((outputs, inputs), device=DEVICE), per)
    assert dequantise(codes, scale).shape == (outputs, inputs)
    assert torch.equal(int8_matmul(torch.zeros((rows, inputs), device=DEVICE), codes, scale), torch.zeros((rows, outputs), device=DEVICE))
