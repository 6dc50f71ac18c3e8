"""Every stored format, packed and multiplied on every instruction set, against gguf's own dequantisation in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.models.matrix import BLOCKS, FACTORED, FORMATS
from tests.support import kernel_parts
from tests.support.kernel_parts import compiled, module, on_every_isa
from tests.support.stored_rows import stored_rows, weights_of

pytestmark = compiled
N, K = 40, 1024
EXACT = {"q1_0", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4", "iq4_nl"} | FACTORED
"""Formats whose scales are halves, powers of two or products that are kept as such, so that nothing at all is rounded. The scales of the others in BLOCKS become halves."""

MINIMUMS = {"q2_k", "q4_1", "q5_1", "q4_k", "q5_k"}


def times(matrix: Any, x: NDArray[np.float32], isa: str = "", threads: int = 1) -> NDArray[np.float64]:
    """matrix @ rows of x, [rows, n]."""
    return kernel_parts.times(matrix, x, isa, threads, eps=0.0) * np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True))


def read_back(matrix: Any, isa: str = "") -> NDArray[np.float64]:
    """The weights [n, k] as the kernels multiply them, up to the rounding of float32: none for floats, if k is a power of 4."""
    return times(matrix, np.eye(matrix.shape[1], dtype=np.float32), isa).T


def inputs(rows: int, k: int) -> NDArray[np.float32]:
    """Rows that lose nothing when they are rounded to eight bits: whole numbers, with a 127 in each block of 32."""
    x = np.random.default_rng(7).integers(-127, 128, (rows, k)).astype(np.float32)
    x[:, ::32] = 127
    return x


def error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def lies_within(got: NDArray[Any], wanted: NDArray[Any], most: NDArray[Any]) -> None:
    assert np.all(np.abs(got - wanted) <= most)


@on_every_isa
@pytest.mark.parametrize("format", sorted(BLOCKS))
def test_block_formats_are_multiplied_as_they_are_stored(format: str, isa: str) -> None:
    rows = stored_rows(format, N, K)
    matrix = module.pack(format, BLOCKS[format], rows, K)
    x = inputs(19, K)
    wanted = x.astype(np.float64) @ weights_of(format, rows, K).astype(np.float64).T
    assert error(times(matrix, x, isa), wanted) < (1e-6 if format in EXACT else 4e-4)


@on_every_isa
@pytest.mark.parametrize("format", sorted(BLOCKS))
def test_each_weight_of_a_block_format_is_the_stored_one(format: str, isa: str) -> None:
    rows = stored_rows(format, N, K)
    wanted = weights_of(format, rows, K).astype(np.float64)
    rounding = 1e-6 if format in EXACT else 2.0**-11
    # Where there is a minimum, it and the scale may both be larger than the weight, which is their sum.
    parts = np.abs(wanted).max() if format in MINIMUMS else np.abs(wanted)
    lies_within(read_back(module.pack(format, BLOCKS[format], rows, K), isa), wanted, rounding * 1.01 * parts)


@pytest.mark.parametrize("format", FORMATS)
def test_as_floats_every_weight_is_gguf_s(format: str) -> None:
    rows = stored_rows(format, N, K)
    assert np.array_equal(read_back(module.pack(format, "f32", rows, K)), weights_of(format, rows, K))


@pytest.mark.parametrize(("target", "levels"), [("q8", 127), ("q4", 8)])
@pytest.mark.parametrize("format", FORMATS)
def test_what_does_not_run_as_stored_is_rounded_to_the_nearest_code(format: str, target: str, levels: int) -> None:
    if BLOCKS.get(format) == target:
        return
    rows = stored_rows(format, N, K)
    wanted = weights_of(format, rows, K)
    got = read_back(module.pack(format, target, rows, K))
    peaks = np.abs(wanted).reshape(N, -1, 32).max(-1).repeat(32, axis=1)
    steps = 0.501 if target == "q8" else 1.01  # from -8 to 7: the other extreme may be cut by a step
    lies_within(got, wanted, peaks / levels * steps + levels * 2.0**-25)  # half the distance of the smallest scales, which are halves
    floats = module.pack("f32", target, wanted.view(np.uint8).reshape(N, -1), K)
    assert np.array_equal(got, read_back(floats))


@on_every_isa
@pytest.mark.parametrize("format", ["mxfp4", "iq2_xxs", "u4g128", "q5_0", "q5_k", "q6_k", "q3_k", "iq2_s"])
def test_a_row_of_a_product_does_not_depend_on_its_batch(isa: str, format: str) -> None:
    rows = int4_rows("u", 33, 256, 128)[0] if format == "u4g128" else stored_rows(format, 33, 256)
    matrix, x = (
        module.pack(format, BLOCKS.get(format, "q4"), rows, 256),
        np.random.default_rng(1).standard_normal((19, 256)).astype(np.float32),
    )
    whole = times(matrix, x, isa, threads=2)
    for first, end in ((0, 1), (3, 5), (7, 11), (2, 19)):
        assert np.array_equal(times(matrix, x[first:end].copy(), isa), whole[first:end])


@pytest.mark.parametrize("format", ["f32", "q2_k", "q8_0", "iq3_s"])
@pytest.mark.parametrize("target", ["f32", "q8", "q4"])
def test_threads_and_order_change_nothing(format: str, target: str) -> None:
    rows = stored_rows(format, 600, 2048)
    order = np.random.default_rng(0).permutation(600)[:590]
    x = np.random.default_rng(1).standard_normal((2, 2048)).astype(np.float32)
    plain = module.pack(format, target, rows[order].copy(), 2048)
    assert np.array_equal(times(plain, x), times(module.pack(format, target, rows, 2048, order, 3), x))


@pytest.mark.parametrize("format", ["f32", "f16", "bf16"])
def test_rows_of_floats_need_no_whole_blocks(format: str) -> None:
    rows = stored_rows(format, 20, 80)
    wanted = weights_of(format, rows, 80)
    lies_within(read_back(module.pack(format, "f32", rows, 80)), wanted, 1e-6 * np.abs(wanted))


def test_every_half_is_read() -> None:
    """Each in a row of its own, between zeros."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    rows = np.zeros((1 << 16, 16), np.float16)
    rows[:, 3] = halves.view(np.float16)
    matrix = module.pack("f16", "f32", rows.view(np.uint8), 16)
    head = module.Head(module.Norm(np.eye(16, dtype=np.float32)[3], 0.0), module.Linear(matrix))
    out = np.empty((1, 1 << 16), np.float32)
    module.Stage(16, 1).logits(np.ones((1, 16), np.float32), head, np.zeros(1, np.int32), out)
    assert np.array_equal(out[0], halves.view(np.float16).astype(np.float32), equal_nan=True)


# MXFP4: a scale is a power of two between 2^-128 and 2^127, of which a half has 40.


def mxfp4(scales: list[int]) -> NDArray[np.uint8]:
    """A row of a block for each."""
    blocks = np.random.default_rng(3).integers(0, 256, (len(scales), 17), np.uint8)
    blocks[:, 0] = scales
    return blocks.reshape(1, -1)


@on_every_isa
@pytest.mark.parametrize("scales", [[104, 143], [60, 98], [0, 1, 2, 39], [150, 180], [100]])
def test_mxfp4_scales_that_are_no_halves_are_folded(scales: list[int], isa: str) -> None:
    rows = mxfp4(scales)
    k = 32 * len(scales)
    wanted = weights_of("mxfp4", rows, k)
    got = read_back(module.pack("mxfp4", "q4", rows, k), isa)
    lies_within(got, wanted, 1e-6 * np.abs(wanted))


def test_a_block_of_mxfp4_zeros_may_have_any_scale() -> None:
    rows = mxfp4([120, 0, 255, 121])
    rows.reshape(-1, 17)[1:3, 1:] = np.array([0x08, 0x80] * 8, np.uint8)
    wanted = weights_of("mxfp4", rows, 128)
    got = read_back(module.pack("mxfp4", "q4", rows, 128))
    assert np.all(np.isfinite(got))
    lies_within(got, wanted, 1e-6 * np.abs(wanted))


def test_mxfp4_scales_too_far_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="mxfp4 blocks of one matrix have scales that differ by more than"):
        module.pack("mxfp4", "q4", mxfp4([60, 110]), 64)
    assert module.pack("mxfp4", "q8", mxfp4([60, 110]), 64).shape == (1, 64)


# Rows of four-bit codes in groups


def int4_rows(kind: str, n: int, k: int, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rng = np.random.default_rng(5)
    codes, zeros = rng.integers(0, 16, (n, k // group, group)), rng.integers(0, 17, (n, k // group, 1))
    scales = rng.uniform(0.001, 0.02, (n, k // group, 1)).astype(np.float16)
    packed = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    parts = [scales.view(np.uint8), zeros.astype(np.uint8), packed] if kind == "u" else [scales.view(np.uint8), packed]
    weights = scales.astype(np.float32) * (codes - (zeros if kind == "u" else 8)).astype(np.float32)
    return np.ascontiguousarray(np.concatenate(parts, axis=-1)).reshape(n, -1), weights.reshape(n, k)


@on_every_isa
@pytest.mark.parametrize("kind", ["s", "u"])
@pytest.mark.parametrize("group", [32, 64, 128, 1024])
def test_groups_of_four_bit_codes_are_multiplied_exactly(kind: str, group: int, isa: str) -> None:
    rows, weights = int4_rows(kind, N, K, group)
    matrix = module.pack(f"{kind}4g{group}", "q4", rows, K)
    x = inputs(9, K)
    assert error(times(matrix, x, isa), x.astype(np.float64) @ weights.astype(np.float64).T) < 1e-6
    lies_within(read_back(matrix, isa), weights, 1e-6 * np.abs(weights))
    assert np.array_equal(read_back(module.pack(f"{kind}4g{group}", "f32", rows, K), isa), weights)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("change", [-1, 1])
def test_rows_of_another_length_are_refused(format: str, change: int) -> None:
    width = stored_rows(format, 1, K).shape[1] + change
    for target in {"f32", "q8", "q4", BLOCKS.get(format, "f32")}:
        with pytest.raises(ValueError, match=rf"{format} rows have the wrong length"):
            module.pack(format, target, np.zeros((2, width), np.uint8), K)


@pytest.mark.parametrize("format", FORMATS)
def test_any_bytes_are_packed(format: str) -> None:
    """Scales that are infinite or no numbers at all may come of a damaged file."""
    width = stored_rows(format, 1, K).shape[1]
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(0, 256, (16, width), np.uint8)
        rows = rows if seed < 2 else np.full_like(rows, 0xFF)
        for target in {"f32", "q8", "q4", BLOCKS.get(format, "f32")}:
            try:
                assert module.pack(format, target, rows, K).shape == (16, K)
            except ValueError as error:
                assert "differ by more" in str(error)  # noqa: PT017
