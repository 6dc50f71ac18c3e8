"""The kernels' computations in NumPy: the reference for their tests, and the fallback if there was no compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.native import BLOCK_TOKENS

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / rms(x) * weight over the last axis."""
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32) + np.float32(eps)) * weight).astype(np.float32)


def norm(x: Floats, weight: Floats, eps: float, bias: Floats | None = None, *, centred: bool = False) -> Floats:
    """An RMS norm, or a layer norm where it is centred, over the last axis."""
    if not centred:
        return rms_norm(x, weight, eps)
    out = rms_norm(x - x.mean(axis=-1, keepdims=True, dtype=np.float32), weight, eps)
    return out if bias is None else out + bias


def rotate(heads: Floats, cos: Floats, sin: Floats) -> Floats:
    """heads: [rows, heads, head_dim]; cos, sin: [rows, head_dim / 2]. Rotates the two halves of each head."""
    half = heads.shape[-1] // 2
    a, b = heads[..., :half], heads[..., half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1, dtype=np.float32)


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Rounds to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: NDArray[np.uint16]) -> Floats:
    return (x.astype(np.uint32) << 16).view(np.float32)


def _floats(cells: NDArray[Any]) -> Floats:
    return from_bf16(cells) if cells.dtype == np.uint16 else cells


def attend(
    qkv: Floats,
    starts: Ints,
    positions: Ints,
    tables: Ints,
    cos: Floats,
    sin: Floats,
    pool: NDArray[np.uint8],
    kv_type: KvType,
    window: int,
    q_norm: Floats | None,
    k_norm: Floats | None,
    *,
    kv_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> Floats:
    """Rotates and stores new keys and values, then grouped-query attention over the paged cache.

    qkv:       [rows, (q heads + 2 kv heads) * head_dim], rows grouped by sequence
    starts:    [sequences + 1] first row of each sequence
    positions: [sequences] position of that row
    tables:    [sequences, width] block ids; entries past a sequence's length are not read
    cos, sin:  [rows, head_dim / 2]
    kv_type:   fp32 or bf16
    pool:      uint8 [blocks, bytes]: per block and KV head the keys [head_dim][32], then the values [32][head_dim]
    window:    tokens that a query sees, itself included; 0: all
    returns    [rows, q heads * head_dim]
    """
    rows, bf16 = len(qkv), kv_type is KvType.BF16
    heads = qkv.reshape(rows, -1, head_dim)
    q_heads = heads.shape[1] - 2 * kv_heads
    q, k, v = heads[:, :q_heads], heads[:, q_heads : q_heads + kv_heads], heads[:, q_heads + kv_heads :]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    width = kv_heads * 2 * BLOCK_TOKENS * head_dim
    cells = pool.view(np.uint16 if bf16 else np.float32)[:, :width].reshape(len(pool), kv_heads, 2, BLOCK_TOKENS * head_dim)
    keys = cells[:, :, 0].reshape(len(pool), kv_heads, head_dim, BLOCK_TOKENS)
    values = cells[:, :, 1].reshape(len(pool), kv_heads, BLOCK_TOKENS, head_dim)
    out = np.empty((rows, q_heads, head_dim), np.float32)
    for s in range(len(positions)):
        first, last = int(starts[s]), int(starts[s + 1])
        at = int(positions[s]) + np.arange(last - first)
        blocks, slots = tables[s][at // BLOCK_TOKENS], at % BLOCK_TOKENS
        for i in range(last - first):
            row_k, row_v = k[first + i], v[first + i]
            cells[blocks[i], :, 0].reshape(kv_heads, head_dim, BLOCK_TOKENS)[:, :, slots[i]] = to_bf16(row_k) if bf16 else row_k
            cells[blocks[i], :, 1].reshape(kv_heads, BLOCK_TOKENS, head_dim)[:, slots[i]] = to_bf16(row_v) if bf16 else row_v
        length = int(at[-1]) + 1
        used = tables[s][: (length + BLOCK_TOKENS - 1) // BLOCK_TOKENS]
        past_k = _floats(keys[used]).transpose(1, 2, 0, 3).reshape(kv_heads, head_dim, -1)[:, :, :length]
        past_v = _floats(values[used]).transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, :length]
        seen = np.arange(length)[None, :] <= at[:, None]
        if window:
            seen &= np.arange(length)[None, :] > at[:, None] - window
        grouped = q[first:last].reshape(last - first, kv_heads, -1, head_dim)
        scores = np.einsum("rhgd,hdt->hgrt", grouped, past_k) * np.float32(scale)
        scores = np.where(seen[None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[first:last] = np.einsum("hgrt,htd->rhgd", weights, past_v).reshape(last - first, q_heads, head_dim)
    return out.reshape(rows, -1)
