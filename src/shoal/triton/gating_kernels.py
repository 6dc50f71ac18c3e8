"""The choice of experts and its gradient: one program for some rows, with all of their experts.

Scores and weights are computed in double precision and rounded once to float32. So they are the exact values correctly rounded but for
about one in 10^8, whatever the order of a sum and whoever wrote `exp`: a GPU, the interpreter and torch take the same experts.

Comparisons are between integers, since those of floats leave open what of two equals is taken, and what a NaN is. A key has the order of
the compared score in its upper bits, and 255 - expert in the lowest eight. No two keys of a row are equal.
"""

# pyright: basic
# Triton has no types.

from __future__ import annotations

import triton
import triton.language as tl

from shoal.triton.rounding import as_float32, as_type

SOFTMAX = tl.constexpr(0)
SIGMOID = tl.constexpr(1)
SOFTMAX_OF_CHOSEN = tl.constexpr(2)
_LOWEST = tl.constexpr(-(1 << 62))
"""Below every key."""


@triton.jit
def _sigmoid(x):
    """x: float64. Never computes the exponential of a positive number, which may overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def _keys(compared, number):
    """Keys, int64, of float32 scores. -0 equals 0; NaN is above infinity, as torch.sort has it."""
    compared = tl.where(compared == 0, 0.0, compared)
    bits = compared.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(compared == compared, order, 0x7FFFFFFF)
    return (order.to(tl.int64) << 8) | (255 - number)


@triton.jit
def _compared(keys):
    """The scores that the keys were made of."""
    order = (keys >> 8).to(tl.int32)
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def choose_kernel(
    logits,
    selection_bias,
    weights,
    ids,
    rows,
    row_stride,
    expert_stride,
    bias_stride,
    scale,
    SCORES: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
    BEST_TWO: tl.constexpr,
    RENORMALISED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
):
    """Chooses and weights.

    logits:         [rows, EXPERTS] float32 or bfloat16, of any strides
    selection_bias: [EXPERTS] float32, or None
    weights:        [rows, CHOSEN] float32, written whole
    ids:            [rows, CHOSEN] int64, written whole
    scale:          a float that float32 holds: compiled kernels take floats as float32
    BLOCK_*:        powers of two. Experts are seen as BLOCK_GROUPS groups of BLOCK_SIZE, of which GROUPS and EXPERTS / GROUPS are real.
    """
    SIZE: tl.constexpr = EXPERTS // GROUPS
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < rows
    group = tl.arange(0, BLOCK_GROUPS)
    within = tl.arange(0, BLOCK_SIZE)
    real = (group < GROUPS)[None, :, None] & (within < SIZE)[None, None, :]
    expert = group[None, :, None] * SIZE + within[None, None, :]
    at = logits + row[:, None, None] * row_stride + expert * expert_stride
    raw = as_float32(tl.load(at, mask=there[:, None, None] & real, other=0.0))  # [rows, groups, size]

    wide = tl.where(real, raw, float("-inf")).to(tl.float64)
    peak = tl.max(tl.max(wide, 2), 1)  # [rows]
    total = peak
    compared = raw
    if SCORES == SOFTMAX:
        exponentials = tl.exp(wide - peak[:, None, None])
        total = tl.sum(tl.sum(exponentials, 2), 1)
        compared = (exponentials / total[:, None, None]).to(tl.float32)
    if SCORES == SIGMOID:
        compared = _sigmoid(wide).to(tl.float32)
    if selection_bias is not None:
        compared += tl.load(selection_bias + expert * bias_stride, mask=real, other=0.0)

    keys = tl.where(real, _keys(compared, expert), _LOWEST)
    if GROUPS_CHOSEN < GROUPS:
        first = tl.max(keys, 2)  # [rows, groups]
        score = _compared(first)
        if BEST_TWO and SIZE > 1:
            score += _compared(tl.max(tl.where(keys == first[:, :, None], _LOWEST, keys), 2))
        group_keys = tl.where((group < GROUPS)[None, :], _keys(score, group[None, :]), _LOWEST)
        open_groups = group_keys != group_keys
        for _ in range(GROUPS_CHOSEN):
            best = group_keys == tl.max(group_keys, 1)[:, None]
            open_groups = open_groups | best
            group_keys = tl.where(best, _LOWEST, group_keys)
        compared = tl.where(open_groups[:, :, None], compared, float("-inf"))
        keys = tl.where(real, _keys(compared, expert), _LOWEST)

    keys = tl.reshape(keys, [BLOCK_ROWS, BLOCK_GROUPS * BLOCK_SIZE])
    slot = tl.arange(0, BLOCK_CHOSEN)[None, :]
    picked = tl.zeros([BLOCK_ROWS, BLOCK_CHOSEN], tl.int64)
    for i in range(CHOSEN):
        best = tl.max(keys, 1)[:, None]
        picked = tl.where(slot == i, 255 - (best & 255), picked)
        keys = tl.where(keys == best, _LOWEST, keys)

    chosen = there[:, None] & (slot < CHOSEN)
    again = tl.load(logits + row[:, None] * row_stride + picked * expert_stride, mask=chosen, other=0.0)
    taken = as_float32(again).to(tl.float64)  # [rows, chosen]
    if SCORES == SOFTMAX:
        taken = tl.exp(taken - peak[:, None]) / total[:, None]
    if SCORES == SIGMOID:
        taken = _sigmoid(taken)
    if SCORES == SOFTMAX_OF_CHOSEN:
        taken = tl.where(slot < CHOSEN, taken, float("-inf"))
        taken = tl.exp(taken - tl.max(taken, 1)[:, None])
        taken = taken / tl.sum(taken, 1)[:, None]
    if RENORMALISED:
        in_all = tl.sum(tl.where(slot < CHOSEN, taken, 0.0), 1)
        if SCORES == SIGMOID:
            in_all += 1e-20
        taken = taken / in_all[:, None]
    out = row[:, None] * CHOSEN + slot
    tl.store(weights + out, (taken * scale).to(tl.float32), mask=chosen)
    tl.store(ids + out, picked, mask=chosen)


@triton.jit
def choose_backward_kernel(
    logits,
    ids,
    weights_gradient,
    logits_gradient,
    rows,
    row_stride,
    expert_stride,
    scale,
    SCORES: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    RENORMALISED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
):
    """The logits' gradient of the weights that the experts `ids` got. The choice has none.

    logits:           [rows, EXPERTS] float32 or bfloat16, of any strides
    ids:              [rows, CHOSEN] int64, contiguous
    weights_gradient: [rows, CHOSEN] float32, contiguous
    logits_gradient:  [rows, EXPERTS], contiguous, of the logits' type; written whole

    With s the scores, n = s / sum(s of the chosen) where they are renormalised, w = scale * n, and g the gradient of w:
    dn = scale * g; ds = (dn - sum(dn * n)) / sum(s); of a softmax dx = s * (ds - sum(ds * s)), of a sigmoid dx = ds * s * (1 - s).
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < rows
    expert = tl.arange(0, BLOCK_EXPERTS)[None, :]
    real = expert < EXPERTS
    raw = as_float32(tl.load(logits + row[:, None] * row_stride + expert * expert_stride, mask=there[:, None] & real, other=0.0))
    wide = tl.where(real, raw, float("-inf")).to(tl.float64)

    chosen = expert < tl.zeros([BLOCK_ROWS, 1], tl.int32)  # none yet
    gradient = tl.zeros([BLOCK_ROWS, BLOCK_EXPERTS], tl.float64)
    for i in range(CHOSEN):
        at = row * CHOSEN + i
        hit = expert == tl.load(ids + at, mask=there, other=i)[:, None]
        gradient = tl.where(hit, tl.load(weights_gradient + at, mask=there, other=0.0).to(tl.float64)[:, None], gradient)
        chosen = chosen | hit
    gradient *= scale

    if SCORES == SIGMOID:
        scores = _sigmoid(wide)
    else:
        if SCORES == SOFTMAX_OF_CHOSEN:
            wide = tl.where(chosen, wide, float("-inf"))
        scores = tl.exp(wide - tl.max(wide, 1)[:, None])
        scores = scores / tl.sum(scores, 1)[:, None]
    if RENORMALISED:
        in_all = tl.sum(tl.where(chosen, scores, 0.0), 1)
        if SCORES == SIGMOID:
            in_all += 1e-20
        mean = tl.sum(gradient * scores, 1) / in_all
        gradient = tl.where(chosen, (gradient - mean[:, None]) / in_all[:, None], 0.0)
    if SCORES == SIGMOID:
        result = gradient * scores * (1.0 - scores)
    elif RENORMALISED:
        result = gradient * scores  # what a softmax would subtract is zero, as the weights do not depend on its denominator
    else:
        result = scores * (gradient - tl.sum(gradient * scores, 1)[:, None])
    out = logits_gradient + row[:, None] * EXPERTS + expert
    tl.store(out, as_type(result.to(tl.float32), logits_gradient.dtype.element_ty), mask=there[:, None] & real)
