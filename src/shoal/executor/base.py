"""The interfaces of the executor: a step as arrays, weights by blocks, and whatever can run layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

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


Angles = tuple[Floats, Floats]
"""Rotary cosine and sine of a step's rows, [rows, rotated values / 2] each."""


class BlockPart(StrEnum):
    """What is held, leased and run as one."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"
    HEAD = "head"
    """The final norm and the output head; its layer is the number of layers."""


class WeightBlock(NamedTuple):
    layer: int
    part: BlockPart


class Packed(Protocol):
    """A block's weights as a runtime executes them."""

    @property
    def nbytes(self) -> int: ...


class Leases(Protocol):
    """Where a runtime gets weights from, for one step at a time."""

    def lease(self, block: WeightBlock) -> Any:
        """What the runtime's `pack` made of the block. Raises LocalProtocolError if it is not here."""
        ...


class Runtime(Protocol):
    """Runs layers. It owns its keys and values, its activations and its threads; weights are leased to it, block by block.

    `pack` may be called by one thread while another runs a step.
    """

    @property
    def name(self) -> str:
        """Which runtime this is, and its instruction set if it has one."""
        ...

    def pack(self, weights: Weights, block: WeightBlock) -> Packed:
        """A block in execution layout. Raises ModelError, ConfigError."""
        ...

    def open(self, blocks: int) -> None:
        """Begins with empty keys and values, of so many KV blocks in each layer."""
        ...

    def keep(self, layers: range) -> None:
        """Frees all other layers' keys and values."""
        ...

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies KV blocks (from, to) in all layers."""
        ...

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        """Runs hidden [rows, hidden] through some layers; their keys and values go into the KV blocks. angles: one for each of the spec's
        rotations. May reuse hidden."""
        ...

    def logits(self, hidden: Floats, picked: Ints, leases: Leases) -> Floats:
        """Final norm and output head for some rows: [len(picked), vocabulary]. Only where the head is."""
        ...

    def normed(self, hidden: Floats, leases: Leases) -> Floats:
        """The final norm alone. Only where the head is."""
        ...


class RuntimeFactory(Protocol):
    def __call__(self, weights: Weights, layer: int) -> Runtime:
        """layer: one that the weights have, to try. Raises ConfigError, UnsupportedModel."""
        ...


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
