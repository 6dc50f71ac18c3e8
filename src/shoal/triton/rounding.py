"""Conversions of floats inside kernels, exact on a GPU and in Triton's interpreter.

The interpreter truncates float32 to bfloat16, and misreads subnormal bfloat16. Both conversions are integer arithmetic here, which gives
the same bits everywhere.
"""

# pyright: basic
# Triton has no types.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def as_float32(x):
    """x in float32, which holds every float16 and bfloat16."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def as_type(x, dtype: tl.constexpr):
    """float32 x in float32, float16 or bfloat16, rounded to nearest, ties to even. NaN stays NaN."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
