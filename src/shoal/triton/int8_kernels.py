"""Dequantisation of INT8 weights, by itself and within a product."""

# pyright: basic
# Triton has no types.

from __future__ import annotations

import triton
import triton.language as tl

from shoal.triton.rounding import as_float32, as_type


@triton.jit
def dequantise_kernel(
    codes,
    scale,
    out,
    rows,
    columns,
    row_stride,
    column_stride,
    scale_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A tile of the weights.

    codes: [rows, columns] int8, of any strides
    scale: [rows] float32; of stride 0 if there is one for all
    out:   [rows, columns] float32, float16 or bfloat16, contiguous; written whole
    """
    across = tl.cdiv(columns, BLOCK_COLUMNS)
    tile = tl.program_id(0)
    row = (tile // across).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tile % across).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    there = (row < rows)[:, None] & (column < columns)[None, :]
    code = tl.load(codes + row[:, None] * row_stride + column[None, :] * column_stride, mask=there, other=0)
    unit = tl.load(scale + row * scale_stride, mask=row < rows, other=0.0)
    weights = code.to(tl.float32) * unit[:, None]
    tl.store(out + row[:, None] * columns + column[None, :], as_type(weights, out.dtype.element_ty), mask=there)


@triton.jit
def int8_matmul_kernel(
    x,
    codes,
    scale,
    out,
    rows,
    outputs,
    inputs,
    x_row_stride,
    x_stride,
    codes_row_stride,
    codes_stride,
    scale_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
):
    """A tile of x @ weights.T. Codes are exact in the type of x, sums are float32, and the scale multiplies the sums.

    x:     [rows, inputs] float32, float16 or bfloat16, of any strides
    codes: [outputs, inputs] int8, of any strides
    scale: [outputs] float32; of stride 0 if there is one for all
    out:   [rows, outputs] of the type of x, contiguous; written whole
    IN_FLOAT32: whether tiles are multiplied as float32, for the interpreter, whose dot takes bfloat16 for integers
    """
    down = tl.cdiv(rows, BLOCK_ROWS)  # tiles of the same weights are neighbours
    tile = tl.program_id(0)
    row = (tile % down).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = (tile // down).to(tl.int64) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    step = tl.arange(0, BLOCK_INPUTS).to(tl.int64)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_OUTPUTS], tl.float32)
    for begin in range(0, inputs, BLOCK_INPUTS):
        at = begin + step
        left = tl.load(
            x + row[:, None] * x_row_stride + at[None, :] * x_stride,
            mask=(row < rows)[:, None] & (at < inputs)[None, :],
            other=0.0,
        )  # [rows, inputs]
        right = tl.load(
            codes + at[:, None] * codes_stride + output[None, :] * codes_row_stride,
            mask=(at < inputs)[:, None] & (output < outputs)[None, :],
            other=0,
        )  # [inputs, outputs]
        right = right.to(tl.float32)
        if IN_FLOAT32:
            sums = tl.dot(as_float32(left), right, sums, input_precision="ieee")
        else:
            sums = tl.dot(left, right.to(left.dtype), sums, input_precision="ieee")
    unit = tl.load(scale + output * scale_stride, mask=output < outputs, other=0.0)
    there = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(out + row[:, None] * outputs + output[None, :], as_type(sums * unit[None, :], out.dtype.element_ty), mask=there)
