"""A machine as a planner sees it: tiers of memory, the devices over them, and the links between them.

Tiers are a list, the largest and slowest first: disk, memory, GPU memory; a machine without a GPU ends with its memory, and one whose
disk is not used begins with it. A link joins each tier with the next. A device (processor, GPU) computes with what lies in its tier.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from math import log

from shoal.placement.roofline import Busy, busy

PRECISIONS = ("q4", "q4_1", "q8", "bf16", "fp32")
"""Kinds of arithmetic, by the bits of a weight: up to 4.75, 6, 12, 24, and more. q4_1 has a minimum in each block, q4 has none."""
ATTENTION = "attention"
"""The arithmetic of queries with keys and values, whose kernels are others than those of matrices. Its rows are the queries that share
what is read: query heads of one head of keys, times the rows of one sequence, of which a decode step has one."""
WEIGHTS = "weights"
"""What is read from memory, beside keys and values."""
_MOST_BITS = (4.75, 6, 12, 24)


def precision(bits: float) -> str:
    """How weights of so many bits are multiplied."""
    return PRECISIONS[bisect_left(_MOST_BITS, bits)]


@dataclass(frozen=True)
class Tier:
    name: str
    """Also the name of the limit, where a device waits for its tier: 'disk', 'memory', 'GPU memory'."""
    size: int
    """Bytes that weights, keys and values, and buffers may take."""

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"the tier '{self.name}' has no room")


@dataclass(frozen=True)
class TierLink:
    """From a tier to the next."""

    name: str
    """Of the limit: 'disk' where it reads from one, else 'link'."""
    bytes_per_second: float
    """In reads of the size and the depth that will be used."""
    seconds: float = 0.0
    """From the request to the first byte."""
    copies: float = 0.0
    """How often the processor passes over each byte in its own memory: 2 if it copies into a staging buffer, 0 if a device reads
    memory by itself."""
    read_seconds: float = 0.0
    """Of the processor for each read, besides copies: to order it, and to put what came in its place."""

    def __post_init__(self) -> None:
        if self.bytes_per_second <= 0 or min(self.seconds, self.copies, self.read_seconds) < 0:
            raise ValueError(f"the link '{self.name}' carries more than 0 bytes per second, and takes and copies at least 0")


@dataclass(frozen=True)
class Curve:
    """Measured operations per second by rows, all of one kind of arithmetic, with the matrices in a cache."""

    rows: tuple[float, ...]
    """[points], rising: rows that are multiplied with one matrix at once."""
    flops: tuple[float, ...]
    """[points]"""

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.flops):
            raise ValueError("a curve has as many rows as speeds, and at least one")
        if self.rows[0] <= 0 or any(a >= b for a, b in pairwise(self.rows)) or any(speed <= 0 for speed in self.flops):
            raise ValueError("a curve's rows rise from above 0, and its speeds are above 0")

    def at(self, rows: float) -> float:
        """Between two points on the straight line over the logarithm of the rows; outside of them, the nearest."""
        i = bisect_left(self.rows, rows)
        if i == 0 or i == len(self.rows):
            return self.flops[min(i, len(self.rows) - 1)]
        left, right = self.rows[i - 1], self.rows[i]
        share = log(rows / left) / log(right / left)
        return self.flops[i - 1] + share * (self.flops[i] - self.flops[i - 1])


@dataclass(frozen=True)
class Device:
    name: str
    """Also the name of the limit, where arithmetic is it: 'processor', 'GPU'."""
    tier: int
    """Index of the tier that it computes from."""
    bytes_per_second: float
    """At which it reads its tier."""
    curves: tuple[tuple[str, Curve], ...]
    """By precision, and for attention."""
    layer_seconds: float = 0.0
    """What a layer takes besides bytes and operations: kernel launches, threads that wait for each other."""
    chosen_seconds: float = 0.0
    """What a layer takes more where some of its experts are not held: its step stops at the router, and goes on with those that are
    there."""
    reading: tuple[tuple[str, Curve], ...] = ()
    """Bytes per second of weights, by the rows that are multiplied with them, and of keys and values, where reading and arithmetic do not
    overlap: a core that multiplies does not read on meanwhile. Empty: they do, and all is read at `bytes_per_second`."""

    def __post_init__(self) -> None:
        known = dict(self.curves)
        if not set(known) & set(PRECISIONS):
            raise ValueError(f"the device '{self.name}' has no speed for any of {', '.join(PRECISIONS)}")
        if unknown := set(known) - {*PRECISIONS, ATTENTION}:
            raise ValueError(f"the device '{self.name}' has speeds for {', '.join(sorted(unknown))}, which is no kind of arithmetic")
        if unknown := set(dict(self.reading)) - {WEIGHTS, ATTENTION}:
            raise ValueError(f"the device '{self.name}' reads {', '.join(sorted(unknown))}, which is neither weights nor attention")
        if self.bytes_per_second <= 0 or min(self.layer_seconds, self.chosen_seconds) < 0:
            raise ValueError(f"the device '{self.name}' reads more than 0 bytes per second, and a layer takes at least 0 seconds")

    def busy(self, size: float, flops: float, speed: float, reads: str, rows: float) -> Busy:
        """With one computation on so many bytes of its tier. speed: operations per second. reads: WEIGHTS or ATTENTION."""
        for kind, curve in self.reading:
            if kind == reads:
                return Busy(memory=size / curve.at(rows), arithmetic=flops / speed)
        return busy(size, flops, self.bytes_per_second, speed)

    def curve(self, kind: str) -> Curve:
        """Of a precision or of attention. What was not measured counts as the next wider precision that was, then as the next
        narrower; 4 bits with a minimum as those without."""
        known = dict(self.curves)
        if kind == "q4_1" and kind not in known:
            kind = "q4"
        at = PRECISIONS.index(kind) if kind in PRECISIONS else PRECISIONS.index("bf16")
        order = (kind, *PRECISIONS[at:], *reversed(PRECISIONS[:at]))
        return next(known[name] for name in order if name in known)


@dataclass(frozen=True)
class Hardware:
    name: str
    tiers: tuple[Tier, ...]
    links: tuple[TierLink, ...]
    """[tiers - 1]"""
    devices: tuple[Device, ...]
    """The processor first."""

    def __post_init__(self) -> None:
        if not self.tiers or len(self.links) != len(self.tiers) - 1:
            raise ValueError(f"{len(self.tiers)} tiers have {max(len(self.tiers) - 1, 0)} links between them, not {len(self.links)}")
        if not self.devices:
            raise ValueError("a machine has a device")
        for names in ([t.name for t in self.tiers], [d.name for d in self.devices], [link.name for link in self.links]):
            if len(set(names)) < len(names):
                raise ValueError(f"two of {', '.join(names)} have the same name")
        for device in self.devices:
            if not 0 <= device.tier < len(self.tiers):
                raise ValueError(f"the device '{device.name}' computes from a tier that is not there")

    def device(self, name: str) -> Device:
        return next(device for device in self.devices if device.name == name)
