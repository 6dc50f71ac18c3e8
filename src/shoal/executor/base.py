"""The interfaces of the executor: a step as arrays, and whatever can run layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.models.weights import Weights
from shoal.scheduler.plan import PromptOutputs, Sampled, StepPlan

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class StageBatch:
    """A step as arrays. Rows are grouped by sequence; each sequence appears once."""

    starts: Ints
    """[sequences + 1] first row of each sequence."""
    positions: Ints
    """[sequences] position of that row."""
    tables: Ints
    """[sequences, width] KV blocks; entries past a sequence's length are not read."""
    tokens: Ints
    """[rows]"""
    picked: Ints
    """Rows after which a token is sampled."""
    sequences: tuple[int, ...]
    """Ids of the sequences of `picked`."""
    slots: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """[rows] where each row's token is stored: block * BLOCK_TOKENS + offset. Journals use the same layout."""

    @property
    def rows(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Angles:
    """Rotary cosine and sine of a step's rows, [rows, head_dim / 2]."""

    cos: Floats
    sin: Floats


class Layers(Protocol):
    """A loaded range of layers: the interface between the stage and the runtimes."""

    @property
    def runtime(self) -> str:
        """Which runtime this is, and its instruction set if it has one."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights as executed."""
        ...

    def forward(self, hidden: Floats, batch: StageBatch, angles: Angles, pools: list[NDArray[np.uint8]], bf16: bool) -> Floats:
        """Runs hidden [rows, hidden] through all layers; keys and values go into each layer's pool [blocks, bytes]. May reuse hidden."""
        ...

    def trim(self, first: int, count: int) -> bool:
        """Frees all layers of this range except `count` from `first` on; False if the runtime cannot."""
        ...

    def logits(self, hidden: Floats, picked: Ints) -> Floats:
        """Final norm and output head for some rows: [len(picked), vocabulary]. Only on the last stage."""
        ...

    def normed(self, hidden: Floats) -> Floats:
        """The final norm alone. Only on the last stage."""
        ...


class LayersFactory(Protocol):
    def __call__(self, weights: Weights, layers: range, last: bool) -> Layers: ...


@dataclass(frozen=True)
class StageOutput:
    """hidden: [rows, hidden] for the next stage; None on the last. sampled: only on the last."""

    hidden: Floats | None
    sampled: list[Sampled]
    seconds: tuple[float, float, float]
    """Of prepare, compute and sample."""
    missing: tuple[int, ...] = ()
    """Sequences that could not be refilled because the journal here does not hold all of their tokens."""
    examined: tuple[PromptOutputs, ...] = ()
    """Only on the last stage."""


class Executor(Protocol):
    """A loaded stage. `run` is called for one step at a time, in the order of the steps."""

    @property
    def nbytes(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def hidden(self) -> int:
        """Values of one row of activations."""
        ...

    def run(self, plan: StepPlan, hidden: Floats | None) -> StageOutput: ...
