"""How fast the kernels of this machine multiply, attend and read memory, by the rows that they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.config import KvType
from shoal.executor.fast_calls import fast_seconds
from shoal.native import BLOCK_TOKENS, kernels

if TYPE_CHECKING:
    from shoal.native import Dense, GroupedQuery, Linear

Points = list[tuple[float, float]]
"""(rows, operations per second), rising."""
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
_SHARING = {1: (1, 1), 2: (2, 1), 4: (4, 1), 8: (8, 1), 64: (4, 16), 1024: (4, 256)}
"""Queries that share what attention reads: query heads of a head of keys, and rows of a sequence."""
_STORED = {"q4": ("q4_0", "q4", 32, 18), "q4_1": ("q4_1", "q4", 32, 20), "q8": ("q8_0", "q8", 32, 34), "fp32": ("f32", "f32", 1, 4)}
"""By precision: the format to pack from, what it is packed as, and its blocks: values and bytes."""
_TOGETHER = 2
"""Times that a layer in a cache runs in one call."""
_READING_ROWS = (1, 2, 3, 4, 8, 16, 32)
_APART = 48
"""Layers of 2 MB that together lie in no cache."""
_SEQUENCES, _AT_ONCE = 96, 8
"""Of 1 MB of keys and values each, and how many a step reads."""
_CONTEXT, _HEADS, _VALUES = 512, 4, 128
"""Of the attention: tokens, heads of keys, values of a head."""
TOKEN = 2 * _HEADS * _VALUES * 2
"""Bytes of a token's keys and values."""

Layer = tuple["GroupedQuery", "Dense"]


@dataclass(frozen=True)
class _Shape:
    hidden: int
    width: int
    heads: int
    kv: int
    dim: int

    @property
    def parameters(self) -> int:
        return self.hidden * 2 * (self.heads + self.kv) * self.dim + 3 * self.hidden * self.width


_SMALL = _Shape(512, 1536, 8, 2, 64)
"""2 MB in 4 bits, 13 in fp32."""
_TINY = _Shape(64, 32, 1, 1, 64)
COMPUTING_ROWS = 32
COMPUTED = 2.0 * COMPUTING_ROWS * _TOGETHER * _SMALL.parameters


@dataclass(frozen=True)
class ProcessorSpeed:
    bytes_per_second: float
    """At which one row gets through weights in memory, its arithmetic included."""
    layer_seconds: float
    """What a layer takes that has next to nothing to read or to compute."""
    reading: dict[str, Points]
    """Bytes per second: of weights in memory, by the rows that are multiplied with them, and of keys and values. What arithmetic takes
    comes on top: a core that computes does not read on meanwhile."""
    arithmetic: dict[str, Points]
    """By precision, with the matrices in a cache; and of attention, by the queries that share keys and values."""


def kernel_speed(threads: int, isa: str = "", seconds: float = 5.0) -> ProcessorSpeed:
    """Needs the kernels. seconds: about how long it takes."""
    made = KernelCalls(threads, isa)
    layers = {kind: made.layer(_SMALL, kind) for kind in _STORED}
    arithmetic = {(kind, rows): made.forward(_SMALL, [layer] * _TOGETHER, rows) for kind, layer in layers.items() for rows in _ROWS}
    attention = {(sharing, at): made.attend(*shape, at) for sharing, shape in _SHARING.items() for at in (0, _CONTEXT)}
    apart, tiny = [made.layer(_SMALL, "q4") for _ in range(_APART)], made.layer(_TINY, "q4")
    weights = {(apart is read, rows): made.forward(_SMALL, read, rows) for read in ([apart[0]] * _APART, apart) for rows in _READING_ROWS}
    keys = {("keys", far): made.attend_many(far) for far in (False, True)}
    small = {"tiny": made.forward(_TINY, [tiny] * _APART, 1)}
    times: dict[Any, float] = fast_seconds({**arithmetic, **attention, **weights, **keys, **small}, seconds)
    found: dict[str, Points] = {}
    for kind, rows in arithmetic:
        operations = 2 * rows * _TOGETHER * _SMALL.parameters
        found.setdefault(kind, []).append((rows, operations / times[kind, rows]))
    for sharing in _SHARING:  # what rows cost that attend to next to nothing is not attention
        operations = 4 * sharing * _HEADS * _VALUES * _CONTEXT
        found.setdefault("attention", []).append((sharing, operations / _more(times[sharing, 0], times[sharing, _CONTEXT])))
    nbytes = sum(part.nbytes for layer in apart for part in layer)
    reading: dict[str, Points] = {
        "weights": [(rows, nbytes / _more(times[False, rows], times[True, rows])) for rows in _READING_ROWS],
        "attention": [(1, _AT_ONCE * _CONTEXT * TOKEN / _more(times["keys", False], times["keys", True]))],
    }
    return ProcessorSpeed(nbytes / times[True, 1], times["tiny"] / _APART, reading, found)


def computing(threads: int, isa: str = "") -> Callable[[], None]:
    """A call that keeps all threads busy for about a millisecond, with COMPUTED operations of COMPUTING_ROWS rows. Needs the kernels."""
    made = KernelCalls(threads, isa)
    return made.forward(_SMALL, [made.layer(_SMALL, "q4")] * _TOGETHER, COMPUTING_ROWS)


def _more(less: float, all: float) -> float:
    """Seconds by which one call is slower than another that does less. On a busy machine the difference of two may be anything."""
    return max(all - less, all / 10)


class KernelCalls:
    """Makes calls of the kernels, to be timed."""

    def __init__(self, threads: int, isa: str) -> None:
        module = kernels()
        assert module is not None, "without the kernels there is nothing to measure"
        self._module, self._threads, self._isa = module, threads, isa

    def _linear(self, n: int, k: int, kind: str) -> Linear:
        format, target, values, size = _STORED[kind]
        rows = np.zeros((n, k // values * size), np.uint8)
        return self._module.Linear(self._module.pack(format, target, rows, k, threads=self._threads))

    def layer(self, shape: _Shape, kind: str) -> Layer:
        def linear(n: int, k: int) -> Linear:
            return self._linear(n, k, kind)

        hidden, dim, q, kv = shape.hidden, shape.dim, shape.heads * shape.dim, shape.kv * shape.dim
        around = self._module.Around(self._module.Norm(np.ones(hidden, np.float32), 1e-5))
        matrices = linear(q, hidden), linear(kv, hidden), linear(kv, hidden), linear(hidden, q)
        heads = {"q_heads": shape.heads, "kv_heads": shape.kv, "key_dim": dim, "value_dim": dim}
        mlp = linear(shape.width, hidden), linear(shape.width, hidden), linear(hidden, shape.width)
        attends = self._module.GroupedQuery(around, *matrices, **heads, scale=dim**-0.5, rotation=0, rotated=dim)
        return attends, self._module.Dense(around, mlp)

    def forward(self, shape: _Shape, layers: Sequence[Layer], rows: int) -> Callable[[], None]:
        """A step with rows of as many sequences, at their first token: attention costs next to nothing."""
        stage = self._module.Stage(shape.hidden, self._threads, self._isa)
        values, starts = np.ones((rows, shape.hidden), np.float32), np.arange(rows + 1, dtype=np.int32)
        positions, tables = np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32)[:, None]
        pool = np.zeros((rows, shape.kv * 2 * BLOCK_TOKENS * shape.dim * 2), np.uint8)
        turned = [(np.ones((rows, shape.dim // 2), np.float32), np.zeros((rows, shape.dim // 2), np.float32))]
        attends, mlps = [attend for attend, _ in layers], [mlp for _, mlp in layers]

        def run() -> None:
            stage.forward(values.copy(), starts, positions, tables, turned, attends, mlps, [pool] * len(layers), KvType.BF16)

        return run

    def attend(self, group: int, rows: int, position: int) -> Callable[[], None]:
        """Attention alone of the last rows of a sequence. group: query heads of a head of keys."""
        q = group * _HEADS * _VALUES
        heads = {"q_heads": group * _HEADS, "kv_heads": _HEADS, "key_dim": _VALUES, "value_dim": _VALUES}
        block = self._module.GroupedQuery(self._module.Around(), None, None, None, None, **heads, scale=_VALUES**-0.5)
        stage = self._module.Stage(_VALUES, self._threads, self._isa)
        blocks = -(-(position + rows) // BLOCK_TOKENS)
        pool = np.zeros((blocks, _HEADS * 2 * BLOCK_TOKENS * _VALUES * 2), np.uint8)
        qkv, out = np.ones((rows, q + 2 * _HEADS * _VALUES), np.float32), np.zeros((rows, q), np.float32)
        starts, positions = np.array([0, rows], np.int32), np.array([position], np.int32)
        table = np.arange(blocks, dtype=np.int32)[None]
        return lambda: stage.attend(block, qkv, starts, positions, table, [], pool, KvType.BF16, out)

    def attend_many(self, far: bool) -> Callable[[], None]:
        """Attention of some sequences, one row each. far: whether every call reads others, which no cache holds then."""
        calls = cycle(self.attend_steps(_SEQUENCES if far else 1, _AT_ONCE, _CONTEXT))
        return lambda: next(calls)()

    def attend_steps(self, sequences: int, rows: int, context: int) -> list[Callable[[], None]]:
        """Attention of one row of each of `rows` sequences over a context: a call for each group of sequences; if there are fewer than
        rows, rows share them."""
        heads = {"q_heads": 4 * _HEADS, "kv_heads": _HEADS, "key_dim": _VALUES, "value_dim": _VALUES}
        block = self._module.GroupedQuery(self._module.Around(), None, None, None, None, **heads, scale=_VALUES**-0.5)
        stage = self._module.Stage(_VALUES, self._threads, self._isa)
        per = -(-(context + 1) // BLOCK_TOKENS)
        pool = np.ones((sequences * per, _HEADS * 2 * BLOCK_TOKENS * _VALUES * 2), np.uint8)
        q = 4 * _HEADS * _VALUES
        qkv, out = np.ones((rows, q + 2 * _HEADS * _VALUES), np.float32), np.zeros((rows, q), np.float32)
        starts, positions = np.arange(rows + 1, dtype=np.int32), np.full(rows, context, np.int32)
        every = np.arange(len(pool), dtype=np.int32).reshape(-1, per)
        tables = [np.ascontiguousarray(np.resize(every[i : i + rows], (rows, per))) for i in range(0, len(every), rows)]
        return [partial(stage.attend, block, qkv, starts, positions, table, [], pool, KvType.BF16, out) for table in tables]
