"""What a head publishes about its cluster: the nodes, the route, and their load. Pure.

Whoever reads it takes it for a stranger's: it is checked as a whole, and refused with the reason. Unknown keys are ignored, so that a
newer shoal can add some.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec

from shoal.discovery.advert import words
from shoal.errors import RemoteProtocolError
from shoal.membership.member import Departure

MAX_RECORD = 256 << 10
"""Bytes of a key's value, and of an event."""
MAX_TABLE = 96 << 10
"""Bytes of a table of experts; of a larger one only the number of its experts is published."""
MAX_NAME = 48
"""Bytes of a node's name, UTF-8."""
MOST_NODES = 1024
MOST_PIPELINES = 256
JOINING = "joining"
"""The state of a node that is no member yet: its link is being measured."""

_RANGES = r"^([0-9]{1,7}(-[0-9]{1,7})?(,[0-9]{1,7}(-[0-9]{1,7})?)*)?\Z"

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Word = Annotated[str, msgspec.Meta(max_length=256)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Ranges = Annotated[str, msgspec.Meta(max_length=MAX_TABLE, pattern=_RANGES)]
"""Numbers, ascending: '0-3,7'; '' for none."""
T = TypeVar("T")


class NodeLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """busy: share of the last seconds in which it computed. steps: that it has run as a stage. frames, rows: that it has answered as a
    worker. queue: frames that wait there now. resident: bytes of memory that its process takes."""

    busy: Share = 0.0
    steps: Count = 0
    frames: Count = 0
    rows: Count = 0
    queue: Count = 0
    resident: Count = 0


class NodeState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node of a cluster.

    head:       of which start of which head it is a node
    number:     which no other node of that head ever has
    role:       'layers' or 'experts'
    state:      'joining', 'idle', 'loading', 'pausing', 'linking', 'filling', 'serving', 'draining', 'suspected', 'failed', 'held off'
    address:    host:port of its tensor port
    layers:     that it runs, like '0-14'; '': none. Of the first pipeline of which it has a part
    further:    layers by the names of the other pipelines of which it has a part; experts for them are not told
    experts:    that it holds for stages elsewhere, by layers that have the same: {'0-26': '64-127'}. {} if there are none, or the table
                has more than MAX_TABLE bytes
    held:       how many experts those are, over all layers
    weights:    bytes of weights that it holds, for all pipelines
    memory:     bytes that weights and KV blocks may take
    round_trip: seconds, between it and the head
    """

    head: Word
    number: Count
    name: Name
    role: Word
    state: Word
    address: Word
    layers: Ranges = ""
    experts: dict[Ranges, Ranges] = {}
    held: Count = 0
    weights: Count = 0
    memory: Count = 0
    threads: Count = 0
    machine: Word = ""
    runtime: Word = ""
    round_trip: Seconds = 0.0
    load: NodeLoad = NodeLoad()
    further: Annotated[dict[Word, Ranges], msgspec.Meta(max_length=MOST_PIPELINES)] = {}

    def __post_init__(self) -> None:
        check_printable(self.head, self.name, self.role, self.state, self.address, self.machine, self.runtime, *self.further)

    @property
    def identity(self) -> tuple[str, int]:
        return self.head, self.number


class StageSpan(msgspec.Struct, frozen=True):
    """layers: like '0-14'."""

    node: Name
    layers: Ranges

    def __post_init__(self) -> None:
        check_printable(self.node)


class RequestLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sequences that run and that wait, and how many may run at once."""

    running: Count = 0
    waiting: Count = 0
    slots: Count = 0


class RouteState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pipeline.

    model:   '' if the head has none
    state:   'waiting', 'loading', 'pausing', 'linking', 'filling' or 'serving'
    stages:  in order
    workers: that hold the other experts
    replica: its number among the copies of the model
    """

    head: Word
    model: Word
    state: Word
    epoch: Count = 0
    stages: list[StageSpan] = []
    workers: list[Name] = []
    requests: RequestLoad = RequestLoad()
    replica: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 1

    @property
    def pipeline(self) -> str:
        return f"{self.model}/{self.replica}"

    def __post_init__(self) -> None:
        check_printable(self.head, self.model, self.state, *self.workers)


class RouteRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """The routes as a key holds them. seq: of the latest event that is already in the keys. ttl: seconds after which the keys of a silent
    head expire. nodes: names of all nodes, each of which has a key. others: those of the other pipelines."""

    seq: Count
    ttl: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    nodes: Annotated[list[Name], msgspec.Meta(max_length=MOST_NODES)]
    route: RouteState
    others: Annotated[list[RouteState], msgspec.Meta(max_length=MOST_PIPELINES)] = []


@dataclass(frozen=True)
class Topology:
    """A cluster at one moment. route: of the first copy of the default model. nodes: by name, at most MOST_NODES. others: the routes of the
    other pipelines, at most MOST_PIPELINES. departed: nodes that left lately, by number."""

    route: RouteState
    nodes: Mapping[str, NodeState]
    departed: Mapping[int, Departure] = field(default_factory=dict[int, Departure], compare=False)
    others: list[RouteState] = field(default_factory=list[RouteState])


def decoded(data: bytes, kind: type[T]) -> T:
    """What came from Redis. Raises RemoteProtocolError."""
    if len(data) > MAX_RECORD:
        raise RemoteProtocolError(f"more than {MAX_RECORD} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not what a head writes: {error}") from error


def published_name(name: str, number: int) -> str:
    """A node's name, or what is published instead of one that is too long or not printable. number: the node's."""
    line = words(name, MAX_NAME)
    return line if line == name and name else f"{words(name, MAX_NAME - 12)}#{number % 10**11}"


def as_ranges(numbers: Iterable[int]) -> str:
    """'0-3,7' for 0, 1, 2, 3, 7 in any order; '' for none."""
    return ",".join(f"{span.start}-{span.stop - 1}" if len(span) > 1 else str(span.start) for span in _spans(sorted(numbers)))


def table_of(table: Sequence[frozenset[int]]) -> dict[str, str]:
    """Experts by layer in the form of NodeState.experts."""
    held = [layer for layer, experts in enumerate(table) if experts]
    out: dict[str, str] = {}
    for span in _spans(held):
        first = span.start
        for layer in span:
            if layer + 1 == span.stop or table[layer + 1] != table[layer]:
                out[as_ranges(range(first, layer + 1))] = as_ranges(table[layer])
                first = layer + 1
    return out if sum(len(layers) + len(experts) for layers, experts in out.items()) <= MAX_TABLE else {}


def _spans(numbers: Sequence[int]) -> Iterator[range]:
    """Consecutive ones together. numbers: ascending."""
    first = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            yield range(numbers[first], number + 1)
            first = i + 1


def check_printable(*texts: str) -> None:
    """Terminals obey control characters. Raises ValueError."""
    for text in texts:
        if not text.isprintable():
            raise ValueError(f"{text[:60]!r} is not printable")
