"""Rotary frequencies, after transformers' modeling_rope_utils (linear, llama3, yarn) and llama.cpp's rope_freqs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shoal.models.spec import Rope


def frequencies(rope: Rope, head_dim: int, context: int = 0) -> tuple[NDArray[np.float32], float]:
    """Angles per position, [rotated values / 2], and the factor on cosine and sine. context: the most tokens of a sequence."""
    head_dim = rope.rotated(head_dim)
    plain = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scale = 1.0
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "factors":
        # One list for all positions of a model: what a token's key is must not depend on how long its sequence becomes.
        longer = rope.long_factors and context > rope.original_context
        plain = plain / np.asarray(rope.long_factors if longer else rope.factors, np.float64)
        scale = rope.attention_factor or 1.0
    elif rope.kind == "llama3":
        plain = _llama3(rope, plain)
    elif rope.kind == "yarn":
        plain = _yarn(rope, plain, head_dim)
        scale = rope.attention_factor if rope.attention_factor is not None else 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    return plain.astype(np.float32), float(scale)


def _llama3(rope: Rope, plain: NDArray[np.float64]) -> NDArray[np.float64]:
    wavelength = 2 * math.pi / plain
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(rope: Rope, plain: NDArray[np.float64], head_dim: int) -> NDArray[np.float64]:
    def dimension(rotations: float) -> float:
        return head_dim * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
