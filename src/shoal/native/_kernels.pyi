"""The compiled extension, as native/module.cpp defines it; a test compares the two. Arrays are contiguous."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]
_Bytes = NDArray[np.uint8]
_Int8s = NDArray[np.int8]

BLOCK_TOKENS: int

def isa(wanted: str = "") -> str:
    """The instruction set that is used: the best of this machine, or the one wanted. Raises ValueError."""

def argmax(x: _Floats) -> int:
    """The first of the largest of x: [n]."""

def pack(format: str, target: str, rows: _Bytes, k: int, order: NDArray[np.int64] | None = None, threads: int = 1) -> Matrix:
    """A matrix [n, k] in the layout of `target` (f32, q8, q4; q5, q6 for formats of as many bits). rows: [n, bytes] in a file's `format`, taken in
    `order`. Raises ValueError."""

_Form = tuple[str, str, str, list[int], float, int, int, int]
"""Kind (f32, q8, q4, q5, q6), scales (halves, factors), what blocks have beside their scale (none, minimum, zero), a table of 16 values or
none, unit, zero point, rows, inputs."""

class Matrix:
    def __init__(self, form: _Form, data: _Bytes) -> None:
        """data: what another matrix of that form had, on a cache line; it is kept and must not change while a step reads it."""
    @property
    def form(self) -> _Form: ...
    @property
    def data(self) -> _Bytes:
        """[bytes], read only."""
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...

class Linear:
    """A matrix [n, k], and a bias [n]."""

    def __init__(self, weight: Matrix, bias: _Floats | None = None) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Norm:
    """An RMS norm, or a layer norm where it is centred. weight, bias: [n]."""

    def __init__(self, weight: _Floats, eps: float, bias: _Floats | None = None, centred: bool = False) -> None: ...

class Around:
    """What a block does around its own arithmetic: norms before and after, a factor on what it adds. same_input: it takes what the block before
    took, as that one normalised it."""

    def __init__(self, before: Norm | None = None, after: Norm | None = None, scale: float = 1.0, same_input: bool = False) -> None: ...

class Block:
    """What is held, leased and run as one. Constructors of blocks raise ValueError for parts that do not fit each other."""

    @property
    def nbytes(self) -> int: ...

class AttentionBlock(Block): ...
class FeedForwardBlock(Block): ...

class GroupedQuery(AttentionBlock):
    def __init__(
        self,
        around: Around,
        q: Linear | None,
        k: Linear | None,
        v: Linear | None,
        o: Linear | None,
        *,
        q_heads: int,
        kv_heads: int,
        key_dim: int,
        value_dim: int,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        scale: float,
        cap: float = 0.0,
        clip: float = 0.0,
        window: int = 0,
        rotation: int = -1,
        rotated: int = 0,
        sinks: _Floats | None = None,
    ) -> None:
        """Without matrices it is for `Stage.attend` alone. rotation: which of a step's rotations turn it; -1: none. sinks: [q_heads]."""

class Latent(AttentionBlock):
    def __init__(
        self,
        around: Around,
        q_a: Linear | None,
        q: Linear,
        kv_a: Linear,
        k_b: Linear,
        v_b: Linear,
        o: Linear,
        *,
        q_a_norm: Norm | None = None,
        kv_a_norm: Norm,
        heads: int,
        rank: int,
        nope: int,
        rope: int,
        value_dim: int,
        scale: float,
        rotation: int = -1,
    ) -> None:
        """k_b: [heads * rank, nope]; v_b: [heads * value_dim, rank]."""

_Mlp = tuple[Linear, Linear, Linear]

class Dense(FeedForwardBlock):
    def __init__(self, around: Around, mlp: _Mlp, activation: str = "silu") -> None:
        """mlp: gate, up, down."""

class Experts(FeedForwardBlock):
    def __init__(
        self,
        around: Around,
        router: Linear,
        experts: Sequence[_Mlp | None],
        *,
        chosen: int,
        width: int = 0,
        activation: str = "silu",
        selection_bias: _Floats | None = None,
        shared: _Mlp | None = None,
        shared_gate: Linear | None = None,
        sigmoid: bool = False,
        softmax_after: bool = False,
        renormalised: bool = False,
        scale: float = 1.0,
        groups: int = 1,
        groups_chosen: int = 1,
        group_by_two: bool = False,
    ) -> None:
        """An expert that is None is not here: it must be placed before it runs. width: of each; 0: that of the first that is here. The arguments after `shared_gate` are those
        of models/spec.py: Routing."""
    def place(self, expert: int, mlp: _Mlp | None) -> None:
        """Puts an expert where the block finds it; None takes it away. No step may be running the block."""
    @property
    def counts(self) -> NDArray[np.uint64]:
        """[experts] rows that each has computed. May be read while a step runs: each count is then one that was true at some moment."""

class ExpertSet:
    """Experts of a layer, without their router."""

    def __init__(self, experts: Sequence[_Mlp | None], *, width: int, hidden: int, activation: str = "silu") -> None:
        """An expert that is None is not here."""
    def place(self, expert: int, mlp: _Mlp | None) -> None:
        """See Experts."""
    @property
    def nbytes(self) -> int: ...

class Head:
    def __init__(self, norm: Norm, linear: Linear) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Stage:
    """Threads and memory of steps; weights are given with each. Methods raise ValueError for arrays of the wrong shape."""

    def __init__(self, hidden: int, threads: int, isa: str = "") -> None: ...
    def forward(
        self,
        hidden: _Floats,
        starts: _Ints,
        positions: _Ints,
        tables: _Ints,
        rotations: Sequence[tuple[_Floats, _Floats]],
        attention: Sequence[AttentionBlock],
        feed_forward: Sequence[FeedForwardBlock],
        pools: Sequence[_Bytes],
        kv_type: str,
    ) -> None:
        """Runs layers over hidden: [rows, hidden], in place. starts: [sequences + 1], positions: [sequences], tables: [sequences, blocks],
        rotations: cosines and sines, [rows, rotated / 2] each; two blocks and a pool for each layer: [blocks, bytes]."""

    def route(
        self,
        hidden: _Floats,
        starts: _Ints,
        positions: _Ints,
        tables: _Ints,
        rotations: Sequence[tuple[_Floats, _Floats]],
        attention: AttentionBlock,
        experts: Experts,
        pool: _Bytes,
        kv_type: str,
    ) -> NDArray[np.int64]:
        """Runs a layer's attention and router over hidden, in place. Returns [needed, 2]: experts by rising number with their rows; the shared
        one, if there is one, is last, with the number of experts as its number. The layer is done when all were computed."""
    def compute(self, hidden: _Floats, experts: Experts, places: Sequence[int]) -> None:
        """Some of the experts that `route` returned, by their places there, rising. Each goes through here once; which ones go together, and
        when, changes no bit of the result."""
    def logits(self, hidden: _Floats, head: Head, picked: _Ints, out: _Floats) -> None:
        """hidden: [rows, hidden]; out: [picked, vocabulary, rounded up to 16]."""

    def attend(
        self,
        block: GroupedQuery,
        qkv: _Floats,
        starts: _Ints,
        positions: _Ints,
        tables: _Ints,
        rotations: Sequence[tuple[_Floats, _Floats]],
        pool: _Bytes,
        kv_type: str,
        out: _Floats,
    ) -> None:
        """Rotation, append and attention alone. qkv: [rows, queries + keys + values]; out: [rows, q_heads * value_dim]."""

    def dispatch(self, experts: Experts, places: Sequence[int], floats: bool) -> tuple[_Ints, int, bytes]:
        """What experts elsewhere need to run for this step, by their places in what `route` returned: the step's rows that any of them runs, how
        many entries they have, and the body of the frame with them (see wire/routed.py). floats: whether the experts' matrices are not
        rounded."""
    def add(self, hidden: _Floats, experts: Experts, places: Sequence[int], rows: _Ints, sums: NDArray[np.float64]) -> None:
        """What `partial` made elsewhere of those places: sums of some rows of the step, [rows, hidden]."""
    def drop(self, hidden: _Floats, experts: Experts, places: Sequence[int]) -> _Ints:
        """Experts that nobody can run, by their places: the others of their rows get their weight. All others but the shared one were
        computed or added before, the shared one was not. Returns the rows that lack one."""
    def partial(self, set: ExpertSet, body: _Bytes, rows: int, experts: int, entries: int, rounded: bool) -> NDArray[np.float64]:
        """Runs experts over rows that were routed elsewhere. body: as `dispatch` gives it; how many rows, experts and entries are in it; and
        whether the rows are rounded. Returns the sum of each row's experts, [rows, hidden]: multiples of 2^-32, so that sums of such sums have
        the same bits in any order."""
    @property
    def awaited(self) -> int:
        """Experts that `route` returned and that were not computed since."""
    @property
    def isa(self) -> str: ...
    @property
    def spent(self) -> tuple[float, float, float, float]:
        """Seconds so far in attention, dense feed-forward parts, experts with their routers, and `logits`; without `partial` and `attend`."""
