"""How a stage's weights share the memory that they may take: what is held all the time, and what is read when it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ModelCost

RING = 2
"""Layers whose constant parts are in memory at once where they are streamed: one runs, the next is read."""


@dataclass(frozen=True)
class StageSizes:
    """Bytes of a stage's weights."""

    constant: Mapping[int, int]
    """By layer: what every step reads, the attention and a dense feed-forward part or the router and the shared experts."""
    expert: Mapping[int, int]
    """By layer that has experts: one of them."""
    experts: Mapping[int, int]
    """By layer that has experts: how many."""
    chosen: int = 0
    """Experts that a row chooses in a layer, at most."""
    head: int = 0

    @classmethod
    def of(cls, model: ModelCost, first: int, end: int) -> StageSizes:
        """Of the stage with these layers, as they are expected to be."""
        layers = dict(enumerate(model.layers[first:end], first))
        routed = {i: layer.experts for i, layer in layers.items() if layer.experts is not None}
        return cls(
            {i: layer.always.size for i, layer in layers.items()},
            {i: experts.each.size for i, experts in routed.items()},
            {i: experts.count for i, experts in routed.items()},
            max((ceil(experts.chosen) for experts in routed.values()), default=0),
            model.head.size if end == len(model.layers) else 0,
        )

    @property
    def total(self) -> int:
        return self.head + self.always + sum(self.expert[i] * count for i, count in self.experts.items())

    @cached_property
    def slot(self) -> int:
        """Bytes of a place for any expert."""
        return max(self.expert.values(), default=0)

    @cached_property
    def every(self) -> int:
        """Experts."""
        return sum(self.experts.values())

    @cached_property
    def always(self) -> int:
        """Bytes of all constant parts."""
        return sum(self.constant.values())


@dataclass(frozen=True)
class Division:
    held: frozenset[int]
    """Layers whose constant parts are held."""
    slots: int
    """Places for experts; with as many as there are experts, all come to be held."""
    nbytes: int
    """That it takes at most."""

    def streamed(self, sizes: StageSizes) -> int:
        """Bytes of the constant parts that every step reads."""
        streamed = [size for layer, size in sizes.constant.items() if layer not in self.held]
        return sum(streamed) if len(streamed) > RING else 0

    def missed(self, sizes: StageSizes) -> float:
        """The part of experts that is not held, if all are used alike."""
        return 1 - self.slots / sizes.every if sizes.every else 0.0


def least(sizes: StageSizes) -> int:
    """Bytes with which a stage can run at all."""
    ring = RING * max(sizes.constant.values(), default=0)
    return sizes.head + min(ring, sizes.always) + _fewest(sizes) * sizes.slot


def least_expected(sizes: StageSizes) -> int:
    """The same for sizes that are expected, of matrices alone: files hold vectors, too, and units fill whole pages."""
    units = 1 + RING + _fewest(sizes)
    return least(sizes) + least(sizes) // 64 + units * (16 << 10)


def _fewest(sizes: StageSizes) -> int:
    """Places for experts with which a step of one row can read a layer's experts while it runs others."""
    return min(max(2, sizes.chosen), sizes.every)


def divide(sizes: StageSizes, memory: int) -> Division:
    """What every step reads is held first, because a byte of it saves a byte of each step; experts take the rest. If the constant parts
    do not all fit, those that are streamed lie as far apart as can be, so that one is read while several run.

    Raises NotEnoughMemory.
    """
    if memory < (need := least(sizes)):
        raise NotEnoughMemory(need, memory, "the least of the model's layers that must be in memory at once")
    fewest, constant = _fewest(sizes), sizes.always
    if sizes.head + constant + fewest * sizes.slot <= memory:
        held, taken = frozenset(sizes.constant), sizes.head + constant
    else:
        held = _spread(sizes, memory - sizes.head - fewest * sizes.slot)
        taken = sizes.head + RING * max(sizes.constant.values()) + sum(sizes.constant[layer] for layer in held)
    slots = min(sizes.every, (memory - taken) // sizes.slot) if sizes.every else 0
    return Division(held, slots, taken + slots * sizes.slot)


def _spread(sizes: StageSizes, room: int) -> frozenset[int]:
    """Layers whose constant parts fit beside a ring for the others, the others far apart."""
    layers = sorted(sizes.constant)
    room -= RING * max(sizes.constant.values())
    for streamed in range(1, len(layers) + 1):
        apart = {layers[i * len(layers) // streamed] for i in range(streamed)}
        held = [layer for layer in layers if layer not in apart]
        if sum(sizes.constant[layer] for layer in held) <= room:
            return frozenset(held)
    return frozenset()
