"""What tests of the kernels build blocks from, and how they run them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.config import KvType
from shoal.executor.kv_pool import token_bytes
from shoal.native import BLOCK_TOKENS, instruction_sets, kernels

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
module: Any = kernels()
compiled = pytest.mark.skipif(module is None, reason="the kernels are not compiled")


ISAS = instruction_sets()
on_every_isa = pytest.mark.parametrize("isa", ISAS)


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Relative, of the whole."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def packed(weight: Floats, target: str = "f32") -> Any:
    return module.pack("f32", target, np.ascontiguousarray(weight).view(np.uint8), weight.shape[1])


def linear(weight: Floats, bias: Floats | None = None, target: str = "f32") -> Any:
    return module.Linear(packed(weight, target), bias)


def head(matrix: Any, eps: float = 1e-6) -> Any:
    return module.Head(module.Norm(np.ones(matrix.shape[1], np.float32), eps), module.Linear(matrix))


def times(matrix: Any, x: Floats, isa: str = "", threads: int = 1, eps: float = 1e-6) -> Floats:
    """matrix @ rows of x, [rows, n], through the output head, which divides a row by its root mean square first."""
    n, k = matrix.shape
    out = np.empty((len(x), (n + 15) // 16 * 16), np.float32)
    module.Stage(k, threads, isa).logits(x, head(matrix, eps), np.arange(len(x), dtype=np.int32), out)
    return out[:, :n]


def nothing_attended(hidden: int) -> Any:
    """An attention that adds nothing."""
    none = linear(np.zeros((16, hidden), np.float32))
    return module.GroupedQuery(
        module.Around(), none, none, none, linear(np.zeros((hidden, 16), np.float32)),
        q_heads=1, kv_heads=1, key_dim=16, value_dim=16, scale=1.0,
    )  # fmt: skip


def nothing_fed_forward(hidden: int) -> Any:
    """A feed-forward part that adds nothing."""
    none = linear(np.zeros((16, hidden), np.float32))
    return module.Dense(module.Around(), (none, none, linear(np.zeros((hidden, 16), np.float32))))


def forward(
    layers: Sequence[tuple[Any, Any, Sequence[int]]],
    x: Floats,
    *,
    angles: Sequence[Doubles] = (),
    pieces: Sequence[int] = (),
    beside: int = 0,
    isa: str = "",
    threads: int = 1,
    kv_type: KvType = KvType.FP32,
) -> Floats:
    """The rows of one sequence after some layers: [rows, hidden].

    layers: an attention, a feed-forward part, and the widths of what is kept of a token: keys and values, in turns. angles: of each rotation, [rows, rotated / 2].
    pieces: where the sequence is cut into steps. beside: rows of two other sequences in every step, one before and one after it.
    """
    stage, hidden, rows = module.Stage(x.shape[1], threads, isa), x.shape[1], len(x)
    own = -(-rows // BLOCK_TOKENS)
    tables = np.full((3, own), own, np.int32)  # every sequence's last block comes first
    tables[1] = np.arange(own)[::-1]
    tables[2] = own + 1
    pools = [np.zeros((own + 2, BLOCK_TOKENS * token_bytes(kept, kv_type)), np.uint8) for _, _, kept in layers]
    others = normal(2, beside, hidden, seed=99)
    attention, feed_forward = [layer[0] for layer in layers], [layer[1] for layer in layers]
    out: list[Floats] = []
    bounds = [0, *pieces, rows]
    for first, end in pairwise(bounds):
        chosen = slice(0, 3) if beside else slice(1, 2)
        counts, positions = np.array([beside, end - first, beside])[chosen], np.array([0, first, 0], np.int32)[chosen]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        step = np.concatenate([others[0], x[first:end], others[1]])
        turned = [np.concatenate([np.zeros((beside, a.shape[1])), a[first:end], np.zeros((beside, a.shape[1]))]) for a in angles]
        rotations = [(np.cos(a).astype(np.float32), np.sin(a).astype(np.float32)) for a in turned]
        stage.forward(step, starts, positions, tables[chosen].copy(), rotations, attention, feed_forward, pools, kv_type)
        out.append(step[beside : len(step) - beside])
    return np.concatenate(out)


WAYS: list[dict[str, Any]] = [
    {"threads": 3},
    {"pieces": [1, 8, 33]},
    {"beside": 5, "threads": 3},
    {"pieces": [7, 8, 40], "beside": 1},
]
"""How the same 45 rows may be run, or more."""


def assert_it_does_not_matter_how(layers: Sequence[tuple[Any, Any, Sequence[int]]], x: Floats, isa: str, **options: Any) -> None:
    """No row depends on what shares its step, or on the threads: bit by bit."""
    whole = forward(layers, x, isa=isa, **options)
    for way in WAYS:
        assert np.array_equal(forward(layers, x, isa=isa, **options, **way), whole), way
