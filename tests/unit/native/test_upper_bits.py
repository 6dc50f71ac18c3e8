"""Codes of five and six bits, and scales of 16 weights: every size, tails of panels, and values at the ends of their ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.models.matrix import BLOCKS, FACTORED
from tests.support import kernel_parts
from tests.support.kernel_parts import compiled, module, on_every_isa
from tests.support.stored_rows import stored_rows, weights_of

pytestmark = compiled
FIVE = ("q5_0", "q5_1", "q5_k")


def times(matrix: Any, x: NDArray[np.float32], isa: str, threads: int = 1) -> NDArray[np.float64]:
    """matrix @ rows of x, [rows, n]."""
    return kernel_parts.times(matrix, x, isa, threads, eps=0.0) * np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True))


def inputs(rows: int, k: int, kind: str) -> NDArray[np.float32]:
    """Rows that lose nothing when they are rounded to eight bits."""
    x = np.random.default_rng(rows).integers(-127, 128, (rows, k)).astype(np.float32)
    if kind == "largest":
        x[:] = 127
    elif kind == "smallest":
        x[:] = -127
    elif kind == "alternating":
        x[:, ::2], x[:, 1::2] = 127, -127
    x[:, ::32] = 127
    return x


def extreme(format: str, rows: NDArray[np.uint8], codes: int) -> NDArray[np.uint8]:
    """The same scales, and every code and factor with the same bits."""
    halves = {
        "q5_0": (0,),
        "q5_1": (0, 2),
        "q5_k": (0, 2),
        "q6_k": (208,),
        "q2_k": (80, 82),
        "q3_k": (108,),
        "iq2_xs": (0,),
        "iq2_s": (0,),
    }[format]
    sizes = {"q5_0": 22, "q5_1": 24, "q5_k": 176, "q6_k": 210, "q2_k": 84, "q3_k": 110, "iq2_xs": 74, "iq2_s": 82}
    cells = rows.reshape(-1, sizes[format])
    out = np.full_like(cells, codes)
    for at in halves:
        out[:, at : at + 2] = cells[:, at : at + 2]
    return out.reshape(rows.shape)


def assert_right(format: str, rows: NDArray[np.uint8], x: NDArray[np.float32], isa: str, threads: int = 1) -> None:
    weights = weights_of(format, rows, x.shape[1]).astype(np.float64)
    got = times(module.pack(format, BLOCKS[format], rows, x.shape[1]), x, isa, threads)
    # What is added up may cancel out: an error is small beside the sum of what was added, minimums and all.
    most = np.abs(x.astype(np.float64)) @ np.abs(weights).max(axis=1, keepdims=True).repeat(x.shape[1], axis=1).T
    rounding = 2.0**-11 if format == "q5_k" else 1e-6  # its scales and minimums become halves
    assert np.all(np.abs(got - x.astype(np.float64) @ weights.T) <= rounding * 1.01 * most + 1e-12)


@on_every_isa
@settings(max_examples=60, deadline=None)
@given(
    format=st.sampled_from(sorted({*FIVE, *FACTORED})),
    n=st.integers(1, 50),
    blocks=st.integers(1, 4),
    rows=st.integers(1, 20),
    kind=st.sampled_from(["any", "largest", "smallest", "alternating"]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_size_is_multiplied_as_the_file_says(
    isa: str, format: str, n: int, blocks: int, rows: int, kind: str, threads: int, seed: int
) -> None:
    k = 256 * blocks
    assert_right(format, stored_rows(format, n, k, seed), inputs(rows, k, kind), isa, threads)


@on_every_isa
@pytest.mark.parametrize("codes", [0x00, 0xFF, 0x0F, 0xF0, 0x55, 0xAA])
@pytest.mark.parametrize("kind", ["largest", "smallest", "alternating"])
@pytest.mark.parametrize("format", ["q5_0", "q5_1", "q5_k", "q6_k", "q2_k", "q3_k", "iq2_xs", "iq2_s"])
def test_codes_and_inputs_at_the_ends_of_their_ranges(format: str, kind: str, codes: int, isa: str) -> None:
    """No sum leaves the bits that an instruction has for it."""
    assert_right(format, extreme(format, stored_rows(format, 17, 512), codes), inputs(9, 512, kind), isa)


@on_every_isa
@pytest.mark.parametrize("rows", [1, 3, 8, 13])
def test_five_bits_give_the_bits_of_eight(rows: int, isa: str) -> None:
    """The same codes and scales in a file of Q8_0."""
    n, k = 33, 320
    five = stored_rows("q5_0", n, k)
    cells = five.reshape(-1, 22)
    scales = np.ascontiguousarray(cells[:, :2]).view(np.float16).astype(np.float32)
    codes = np.round(weights_of("q5_0", five, k).reshape(-1, 32) / scales).astype(np.int8)
    eight = np.concatenate([cells[:, :2], codes.view(np.uint8)], axis=1).reshape(n, -1)
    x = np.random.default_rng(2).standard_normal((rows, k)).astype(np.float32)
    wanted = times(module.pack("q8_0", "q8", np.ascontiguousarray(eight), k), x, isa)
    assert np.array_equal(times(module.pack("q5_0", "q5", five, k), x, isa), wanted)


@pytest.mark.parametrize(("format", "target"), [("f32", "q5"), ("q8_0", "q6"), ("q5_0", "q6"), ("q6_k", "q5"), ("q4_0", "q5")])
def test_nothing_is_rounded_to_five_or_six_bits(format: str, target: str) -> None:
    with pytest.raises(ValueError, match=rf"no packing of {format} to {target}"):
        module.pack(format, target, stored_rows(format, 4, 256), 256)
