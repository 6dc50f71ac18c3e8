"""The compiled extension, as native/module.cpp defines it; a test compares the two. Arrays are contiguous."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]
_Bytes = NDArray[np.uint8]

BLOCK_TOKENS: int

def isa(wanted: str = "") -> str:
    """The instruction set that is used: the best of this machine, or the one wanted. Raises ValueError."""

def argmax(x: _Floats) -> int:
    """The first of the largest of x: [n]."""

def pack(format: str, target: str, rows: _Bytes, k: int, order: NDArray[np.int64] | None = None, threads: int = 1) -> Matrix:
    """A matrix [n, k] in the layout of `target` (f32, q8, q4). rows: [n, bytes] in a file's `format`, taken in `order`. Raises ValueError."""

class Matrix:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...

class Stage:
    """Layers of one shape. Methods raise ValueError for arrays of the wrong shape."""

    def __init__(
        self,
        hidden: int,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate: int,
        eps: float,
        scale: float,
        threads: int,
        isa: str = "",
    ) -> None: ...
    def add_layer(
        self,
        attention_norm: _Floats,
        mlp_norm: _Floats,
        q_norm: _Floats | None,
        k_norm: _Floats | None,
        weights: Sequence[Matrix],
        biases: Sequence[_Floats | None],
        window: int = 0,
    ) -> None:
        """weights and biases: of q, k, v, o, gate, up, down."""

    def set_head(self, norm: _Floats, head: Matrix) -> None: ...
    def forward(
        self,
        hidden: _Floats,
        starts: _Ints,
        positions: _Ints,
        tables: _Ints,
        cos: _Floats,
        sin: _Floats,
        pools: Sequence[_Bytes],
        bf16: bool,
    ) -> None:
        """Runs all layers over hidden: [rows, hidden], in place. starts: [sequences + 1], positions: [sequences], tables: [sequences, blocks],
        cos and sin: [rows, head_dim / 2]; a pool for each layer: [blocks, bytes]."""

    def trim(self, first: int, end: int) -> None:
        """Keeps the layers [first, end)."""

    def logits(self, hidden: _Floats, picked: _Ints, out: _Floats) -> None:
        """hidden: [rows, hidden]; out: [picked, vocabulary, rounded up to 16]."""

    @property
    def nbytes(self) -> int: ...
    @property
    def isa(self) -> str: ...

class Attention:
    """Rotation, append and grouped-query attention of one layer. Raises ValueError for arrays of the wrong shape."""

    def __init__(self, q_heads: int, kv_heads: int, head_dim: int, eps: float, scale: float, threads: int, isa: str = "") -> None: ...
    def run(
        self,
        qkv: _Floats,
        starts: _Ints,
        positions: _Ints,
        tables: _Ints,
        cos: _Floats,
        sin: _Floats,
        pool: _Bytes,
        bf16: bool,
        window: int,
        q_norm: _Floats | None,
        k_norm: _Floats | None,
        out: _Floats,
    ) -> None:
        """qkv: [rows, queries + keys + values]; out: [rows, queries]; the others as in `Stage.forward`."""
