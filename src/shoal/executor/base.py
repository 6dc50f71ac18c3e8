"""The interfaces of the executor: a step as arrays, weights by blocks, and whatever can run layers."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shoal.errors import LocalProtocolError
from shoal.executor.expert_split import RemoteLayer
from shoal.models.weights import Weights
from shoal.observed.computing import ComputeParts
from shoal.scheduler.plan import PromptOutputs, Sampled, StepPlan
from shoal.wire.routed import Routed, Sums

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
    """Rows after which a token is sampled; of drafts, only if those before them were right."""
    sequences: tuple[int, ...]
    """Ids of the sequences of `picked`."""
    slots: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """[rows] where each row's token is stored: block * BLOCK_TOKENS + offset. Journals use the same layout."""

    degraded: set[int] = field(default_factory=set[int])
    """Rows that some layer computed without an expert; grows while the step runs."""

    @property
    def rows(self) -> int:
        return len(self.tokens)


Activations = Any
"""Hidden states [rows, hidden] wherever the runtime has them; it takes floats, too."""
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


class Partial(NamedTuple):
    """What experts elsewhere made of a layer's rows."""

    experts: Ints
    rows: Ints
    """Of the step: those that any of these experts runs."""
    sums: Sums
    seconds: float = 0.0
    """That the worker computed; 0: not known."""


class Send(NamedTuple):
    """Rows go to experts elsewhere; the step goes on meanwhile."""

    routed: Routed
    rows: Ints
    """Of the step."""
    spare: frozenset[int] = frozenset()
    """Those of the experts that the stage runs itself if they do not come soon."""


class Collect(NamedTuple):
    """The step needs what was sent: it is given a list of `Partial`, in which each expert that was asked is once; of the spare ones, and
    where a step may go on without, some are in none."""


T = TypeVar("T")
Program = Generator[Send | Collect, "list[Partial]", T]
"""A step that may have to wait. Whoever performs what it yields sends it the result, on whatever thread; of `Send` an empty list."""


def here(program: Program[T]) -> T:
    """What a step gives that needs nothing from elsewhere. Raises LocalProtocolError if it does."""
    try:
        next(program)
    except StopIteration as end:
        return end.value
    program.close()
    raise LocalProtocolError("a step needs experts that run elsewhere, and nobody asks for them")


Wave = list[int]
"""Experts of a layer that are in their block now, by their places among those that the step needs there; rising. They may be gone when the
next wave comes."""


class Leases(Protocol):
    """Where a runtime gets weights from, for one step at a time. Methods raise WeightsUnreadable where weights are read."""

    @property
    def nbytes(self) -> int:
        """That the weights take in memory, at most."""
        ...

    @property
    def waited(self) -> float:
        """Seconds so far in which steps waited for weights."""
        ...

    def runs(self, layers: range) -> list[range]:
        """The layers, cut into those whose blocks can be leased at once."""
        ...

    def apart(self, layer: int) -> bool:
        """Whether the layer's experts come one after the other, in waves; it is a run of its own then."""
        ...

    def lease(self, block: WeightBlock) -> Any:
        """What the runtime's `pack` made of the block. Raises LocalProtocolError if it is not here."""
        ...

    def release(self, layers: range) -> None:
        """A run of layers is done, or the head, as the layer after the last; their blocks may change."""
        ...

    def elsewhere(self, layer: int) -> RemoteLayer | None:
        """Of a layer that is apart: experts that run on other machines, or may. None: there are none; `waves` brings all that are needed."""
        ...

    def waves(self, layer: int, needed: Sequence[int], hidden: Floats) -> Generator[Wave]:
        """Puts experts into the leased block of a layer that is apart. needed: by rising number, the shared one last, as the number of
        experts. Each comes once. hidden: [rows, hidden] after the layer's attention, to guess by what the
        next layer needs."""
        ...


class Runtime(Protocol):
    """Runs layers. It owns its keys and values, its activations and its threads; weights are leased to it, block by block.

    `pack` may be called by one thread while another runs a step.
    """

    @property
    def name(self) -> str:
        """Which runtime this is, and its instruction set if it has one."""
        ...

    @property
    def spent(self) -> ComputeParts:
        """So far, as far as it is known what it was for. waiting: only for other machines."""
        ...

    def pack(self, weights: Weights, block: WeightBlock, without: Container[int] = ()) -> Packed:
        """A block in execution layout. without: experts that run elsewhere. Raises ModelError, ConfigError."""
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

    def forward(self, hidden: Activations, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Activations:
        """Runs hidden [rows, hidden] through some layers; their keys and values go into the KV blocks. hidden: floats, or what another call
        gave; it may be reused. angles: one for each of the spec's rotations."""
        ...

    def program(self, hidden: Activations, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Program[Activations]:
        """The same, where experts may be elsewhere."""
        ...

    def to_host(self, hidden: Activations) -> Floats:
        """Activations as the wire and the journals take them."""
        ...

    def logits(self, hidden: Activations, picked: Ints, leases: Leases) -> Floats:
        """Final norm and output head for some rows: [len(picked), vocabulary]. Only where the head is."""
        ...

    def normed(self, hidden: Activations, leases: Leases) -> Floats:
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
    degraded: tuple[tuple[int, int], ...] = ()
    """Sequences, each with how many of its rows some layer computed without an expert."""
    examined: tuple[PromptOutputs, ...] = ()
    """Only on the last stage."""


class Executor(Protocol):
    """A loaded stage. One step's program is run at a time, in the order of the steps."""

    @property
    def nbytes(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def hidden(self) -> int:
        """Values of one row of activations."""
        ...

    def program(self, plan: StepPlan, hidden: Floats | None) -> Program[StageOutput]: ...
