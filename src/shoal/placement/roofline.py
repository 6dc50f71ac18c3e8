"""The hierarchical roofline model: what limits a computation whose data come from another tier than the one it runs over.

After MoE-Lightning (Cao et al., 2024, arXiv 2411.11217, section 3.2). `i` is the tier of the device that computes, `j` the one that
data come from; I is an intensity, operations per byte that is read from that tier.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Roof:
    """A device over its tier."""

    flops: float
    """Most operations per second."""
    bytes_per_second: float
    """Of its own tier."""

    def attainable(self, intensity: float) -> float:
        """min(P, B·I), equation 8: operations per second on data in the own tier."""
        return min(self.flops, self.bytes_per_second * intensity)


def attainable(device: Roof, link: float, own: float, other: float) -> float:
    """min(P_i, B_i·I_i, B_ji·I_j), equation 7: operations per second on tier i with data that come from tier j.

    link: bytes per second from j to i. own, other: intensities with regard to tiers i and j.
    """
    return min(device.attainable(own), link * other)


def first_turning_point(lower: Roof, link: float, other: float) -> float:
    """P1, equation 9: the intensity on tier j below which it is no use to move data to i; j's own device is as fast as the link.

    lower: the device over tier j.
    """
    return lower.attainable(other) / link


def second_turning_point(upper: Roof, link: float, own: float) -> float:
    """P2, equation 10: the intensity on tier j below which the link is the limit of a computation on tier i."""
    return upper.attainable(own) / link


def balance_point(upper: Roof, link: float, own: float) -> float:
    """Equation 11: the intensity on tier j at which the link and tier i's own memory are equally slow, B_i·I_i = B_ji·I_j. Beyond
    it a larger batch helps only if its micro-batches grow, too."""
    return upper.bytes_per_second * own / link


@dataclass(frozen=True)
class Busy:
    """Seconds that a device is busy, by what bounds it meanwhile."""

    memory: float = 0.0
    arithmetic: float = 0.0
    other: float = 0.0
    """Launches and barriers."""

    @property
    def seconds(self) -> float:
        return self.memory + self.arithmetic + self.other

    def __add__(self, more: Busy) -> Busy:
        return Busy(self.memory + more.memory, self.arithmetic + more.arithmetic, self.other + more.other)

    def times(self, count: float) -> Busy:
        return Busy(self.memory * count, self.arithmetic * count, self.other * count)


def busy(size: float, flops: float, bytes_per_second: float, speed: float) -> Busy:
    """One computation: the larger of its two times, which is its operations over what `Roof.attainable` gives."""
    reading, computing = size / bytes_per_second, flops / speed
    return Busy(memory=reading) if reading >= computing else Busy(arithmetic=computing)
