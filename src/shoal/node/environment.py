"""Everything that the head and the agents touch outside themselves: one contract, implemented by the machine that they run on
and by the simulation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

from shoal.control import messages as control
from shoal.control.server import Attendant
from shoal.executor.base import Executor
from shoal.executor.expert_split import Experts, RemoteExperts
from shoal.executor.store import RowCounts
from shoal.node.expert_service import Bank
from shoal.security.certificates import Role
from shoal.transport.base import FrameStream, Handler
from shoal.weights.expert_reads import ExpertReads

T = TypeVar("T")


class Listener(Protocol):
    @property
    def port(self) -> int: ...
    async def close(self) -> None: ...


class ControlLink(Protocol):
    """A node's end of the conversation."""

    def say(self, message: control.NodeMessage) -> None: ...
    def attend(self, timeout: float) -> AsyncGenerator[control.HeadMessage]:
        """What the head says, until it hangs up. Raises ClusterError if it cannot be reached or the connection breaks."""
        ...

    async def close(self) -> None: ...


class ControlDoor(Protocol):
    """The head's end."""

    @property
    def port(self) -> int: ...
    async def stop(self) -> None: ...


class Environment(Protocol):
    rng: Random
    turns: int
    """Of the event loop that a step may wait for an answer without leaving the processor."""

    def now(self) -> float:
        """Monotonic seconds, on the same clock as the arrival times of frames."""
        ...

    async def listen(self, host: str, port: int, handler: Handler) -> Listener:
        """Raises ConfigError."""
        ...

    async def connect(self, host: str, port: int, timeout: float, role: Role = Role.NODE) -> FrameStream:
        """Connects to a node or to the head. If there are certificates, the peer's must have the given role. Raises
        ConnectionError, TimeoutError."""
        ...

    def facing(self, host: str, port: int) -> str:
        """This machine's address on the way to a host. Raises ConfigError."""
        ...

    def control_link(self, address: str) -> ControlLink: ...
    async def control_door(self, attendant: Attendant, host: str, port: int) -> ControlDoor:
        """Raises ConfigError."""
        ...

    async def compute(self, work: Callable[[], T]) -> T:
        """Runs work in the thread that runs steps, after the work given to it before."""
        ...

    async def step(self, work: Callable[[], T], size: int) -> T:
        """Runs a step that came in `size` bytes: like `compute`, or right here if that is faster."""
        ...

    async def load(self, work: Callable[[], T]) -> T:
        """Runs work in parallel with the steps."""
        ...


class Model(Protocol):
    """A node's part of a model: see executor.shard.Shard."""

    @property
    def layers(self) -> list[range]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def expert_rows(self) -> dict[int, RowCounts]: ...
    @property
    def expert_reads(self) -> ExpertReads: ...
    def shed(self, wanted: list[range]) -> None: ...
    def load(self, layers: range, streamed: bool = False, elsewhere: Experts | None = None) -> None: ...
    def enter(self, layers: range, keep: range, blocks: int, memory: int = 0, remote: RemoteExperts | None = None) -> Executor:
        """memory: bytes that the weights may take if they are streamed; 0: all are held. remote: experts that workers hold."""
        ...

    def hold(self, experts: Experts, memory: int = 0) -> Bank:
        """Loads experts for stages on other machines, beside those that are there. memory: bytes that all may take; 0: what they need."""
        ...

    def free(self, wanted: Experts) -> None:
        """Frees all experts for stages on other machines but these."""
        ...

    def unpacked(self, layers: list[int]) -> dict[int, Path]:
        """Where packed files of some layers are to be that are not there. The head's layer is the number of layers."""
        ...

    def usable(self, layer: int) -> bool:
        """Whether a packed file that was copied there is one, as far as can be told; it is deleted if not."""
        ...

    @property
    def packed(self) -> dict[int, Path]:
        """Packed files that are there, by layer, and that were made of the files that the order names."""
        ...

    def rest(self) -> None: ...
    def close(self) -> None: ...
    def report(self, report: control.PipelineReport) -> None:
        """Fills in the fields about the journals and the computing of stages."""
        ...


class ModelMaker(Protocol):
    def __call__(self, order: control.Load, /) -> Model: ...
