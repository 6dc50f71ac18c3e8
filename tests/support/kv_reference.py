"""Keys and values as native/kv_cells.h says that they are stored: of 8 bits, or with values of 4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.native import BLOCK_TOKENS

Floats = NDArray[np.float32]
GROUP = 32
LEAST_PEAK = np.float32(1e-30)


def grouped(x: Floats) -> Floats:
    """[tokens, width] to [tokens, groups, 32], filled up with zeros."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)


def scales(x: Floats, kv_type: KvType) -> NDArray[np.uint16]:
    """[..., 32] to [...], bf16."""
    high, low = np.maximum(x.max(-1), 0), np.maximum((-x).max(-1), 0)
    peak = np.maximum(high, low)
    exact = peak / np.float32(127) if kv_type is KvType.Q8 else np.where(high >= low, -high, low) / np.float32(8)
    up = ((exact.astype(np.float32).view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype(np.uint16)
    return np.where(np.isfinite(x).all(-1), np.where(peak < LEAST_PEAK, 0, up), 0x7FC0).astype(np.uint16)


def widened(scale: NDArray[np.uint16]) -> Floats:
    return (scale.astype(np.uint32) << 16).view(np.float32)


def codes(x: Floats, scale: NDArray[np.uint16], kv_type: KvType) -> NDArray[np.int32]:
    by = widened(scale)[..., None]
    usable = np.isfinite(by) & (by != 0)
    whole = np.rint(np.where(usable, x / np.where(usable, by, np.float32(1)), np.float32(0)))
    return np.minimum(whole, 127 if kv_type is KvType.Q8 else 7).astype(np.int32)


def kept(x: Floats, kv_type: KvType) -> Floats:
    """[tokens, width], as they come back."""
    groups = grouped(x)
    scale = scales(groups, kv_type)
    return (codes(groups, scale, kv_type) * widened(scale)[..., None]).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)


def rounded_query(q: Floats) -> Floats:
    """[rows, width]: to 8 bits, with exact scales."""
    groups = grouped(q)
    peak = np.abs(groups).max(-1, keepdims=True)
    scale = np.where(peak < LEAST_PEAK, np.float32(0), peak / np.float32(127))
    usable = np.isfinite(scale) & (scale != 0)
    whole = np.rint(np.where(usable, groups / np.where(usable, scale, np.float32(1)), np.float32(0)))
    return (whole * scale).reshape(len(q), -1)[:, : q.shape[1]].astype(np.float32)


def block(k: Sequence[Floats], v: Sequence[Floats], kv_type: KvType) -> NDArray[np.uint8]:
    """The bytes of one block in which tokens 0, 1, … are. k, v: of each KV head, [tokens, width]."""
    parts: list[NDArray[np.uint8]] = []
    for keys, values in zip(k, v, strict=True):
        parts += [_group(group, KvType.Q8, True) for group in grouped(keys).swapaxes(0, 1)]
        parts += [_group(group, kv_type, False) for group in grouped(values).swapaxes(0, 1)]
    return np.concatenate(parts)


def _group(x: Floats, kv_type: KvType, keys: bool) -> NDArray[np.uint8]:
    """x: [tokens, 32]"""
    tokens, size = len(x), GROUP if kv_type is KvType.Q8 else GROUP // 2
    scale = scales(x, kv_type)
    numbers = codes(x, scale, kv_type)
    if kv_type is KvType.Q8:
        stored = (numbers + (128 if keys else 0)).astype(np.uint8)
    else:
        stored = (numbers[:, :16] + 8 | (numbers[:, 16:] + 8) << 4).astype(np.uint8)
    all_scales, cells = np.zeros(BLOCK_TOKENS, np.uint16), np.zeros((BLOCK_TOKENS, size), np.uint8)
    all_scales[:tokens], cells[:tokens] = scale, stored
    together = 4 if keys else 2
    if keys:
        arranged = cells.reshape(BLOCK_TOKENS, size // together, together).swapaxes(0, 1)
    else:
        arranged = cells.reshape(BLOCK_TOKENS // together, together, size).swapaxes(1, 2)
    return np.concatenate([all_scales.view(np.uint8), arranged.ravel()])
