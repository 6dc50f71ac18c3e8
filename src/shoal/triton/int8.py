"""Weights in INT8, symmetric, with a scale for each output channel or for the whole tensor (LLM.int8(), arXiv 2208.07339, equation 1).

A weight is code * scale. Codes are -127 to 127, so that the negative of a weight is one, too.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from shoal.triton import int8_kernels
from shoal.triton.checks import check_tensor, named
from shoal.triton.launch import check_device, interpreted, launch, next_power_of_two, tiles

_KERNELS: Any = int8_kernels  # Triton has no types
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_TINIEST = torch.finfo(torch.float32).tiny


def quantise(weights: torch.Tensor, per: Literal["channel", "tensor"] = "channel") -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale of weights: done once for a model, so in torch and without a kernel, on any device.

    weights: [outputs, inputs] float32, float16 or bfloat16
    returns: codes [outputs, inputs] int8, and the scale, float32: [outputs] per channel, [1] per tensor

    The scale is that of the largest magnitude over 127, and never subnormal. Codes are weights / scale, rounded to nearest, ties to even.

    Raises TypeError for another type, and ValueError for another shape and for weights that are not finite.
    """
    check_tensor("weights", weights, 2, _FLOATS)
    if per not in ("channel", "tensor"):
        raise ValueError(f"per must be 'channel' or 'tensor', not {per!r}")
    wide = weights.detach().float()
    if per == "channel":
        largest = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
    else:
        largest = wide.abs().amax().reshape(1) if wide.numel() else wide.new_zeros(1)
    if not torch.isfinite(largest).all():
        raise ValueError("weights that are not finite cannot be quantised")
    scale = (largest / torch.full_like(largest, 127)).clamp_(min=_TINIEST)  # on a GPU torch multiplies by 1 / 127 if given the number
    return torch.round(wide / scale[:, None]).clamp_(-127, 127).to(torch.int8), scale


def dequantise(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights [outputs, inputs]: codes * scale in float32, rounded to dtype; the same bits as torch's.

    codes: [outputs, inputs] int8
    scale: [outputs] float32, or [1]
    dtype: float32, float16 or bfloat16

    Raises TypeError for other types, and ValueError for other shapes or devices.
    """
    _check_weights(codes, scale)
    if dtype not in _FLOATS:
        raise TypeError(f"weights are made in {named(_FLOATS)}, not in {dtype}")
    check_device(_KERNELS.dequantise_kernel, codes=codes, scale=scale)
    rows, columns = codes.shape
    out = torch.empty((rows, columns), dtype=dtype, device=codes.device)
    if out.numel():
        block_columns = min(next_power_of_two(columns), 512)
        block_rows = 2048 // block_columns
        launch(
            _KERNELS.dequantise_kernel,
            tiles(rows, block_rows) * tiles(columns, block_columns),
            codes,
            scale,
            out,
            rows,
            columns,
            *codes.stride(),
            _stride(scale),
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
            enable_fp_fusion=False,
        )
    return out


def int8_matmul(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x @ (codes * scale).T, dequantised within the product: the weights are read as bytes.

    x:       [rows, inputs] float32, float16 or bfloat16
    codes:   [outputs, inputs] int8
    scale:   [outputs] float32, or [1]
    returns: [rows, outputs] of the type of x

    Sums are float32, of products with the codes, which all three types hold exactly. So a result is off by at most
    2 * inputs * 2^-24 * (|x| @ |weights|.T), and by half a unit in the last place of its type. Weights are not rounded to the type of x.

    Raises TypeError for other types; ValueError for other shapes or devices, and where x would need a gradient, which there is none of.
    """
    check_tensor("x", x, 2, _FLOATS)
    _check_weights(codes, scale)
    rows, inputs = x.shape
    outputs = len(codes)
    if codes.shape[1] != inputs:
        raise ValueError(f"x has {inputs} values in a row, and the weights take {codes.shape[1]}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x requires a gradient, which int8_matmul does not have; call it under torch.no_grad()")
    check_device(_KERNELS.int8_matmul_kernel, x=x, codes=codes, scale=scale)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    if out.numel():
        block_rows = min(max(next_power_of_two(rows), 16), 64)
        block_outputs, block_inputs = (32, 128) if rows <= 16 else (64, 64)
        if x.dtype == torch.float32:
            block_inputs = 32  # no matrix instructions: every product takes registers
        launch(
            _KERNELS.int8_matmul_kernel,
            tiles(rows, block_rows) * tiles(outputs, block_outputs),
            x,
            codes,
            scale,
            out,
            rows,
            outputs,
            inputs,
            *x.stride(),
            *codes.stride(),
            _stride(scale),
            BLOCK_ROWS=block_rows,
            BLOCK_OUTPUTS=block_outputs,
            BLOCK_INPUTS=block_inputs,
            IN_FLOAT32=interpreted(_KERNELS.int8_matmul_kernel),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out


def _check_weights(codes: torch.Tensor, scale: torch.Tensor) -> None:
    check_tensor("codes", codes, 2, (torch.int8,))
    check_tensor("scale", scale, 1, (torch.float32,))
    if len(scale) not in (1, len(codes)):
        raise ValueError(f"there are {len(scale)} scales; weights with {len(codes)} output channels have as many, or 1")


def _stride(scale: torch.Tensor) -> int:
    """From an output channel's scale to the next one's; 0 if there is one for all."""
    return 0 if len(scale) == 1 else scale.stride(0)
