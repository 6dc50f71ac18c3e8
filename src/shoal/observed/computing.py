"""What the computing of a stage is made of."""

from __future__ import annotations

import msgspec


class ComputeParts(msgspec.Struct, frozen=True):
    """Seconds.

    attention:    with its projections, and with writing keys and values
    feed_forward: of dense layers
    experts:      with the router and the shared expert
    waiting:      for weights from disk, and for experts on workers
    head:         the final norm and the logits
    other:        the rest, such as the journal
    """

    attention: float = 0.0
    feed_forward: float = 0.0
    experts: float = 0.0
    waiting: float = 0.0
    head: float = 0.0
    other: float = 0.0

    def __add__(self, more: ComputeParts) -> ComputeParts:
        return ComputeParts(*(a + b for a, b in zip(self.seconds, more.seconds, strict=True)))

    def __sub__(self, before: ComputeParts) -> ComputeParts:
        return ComputeParts(*(a - b for a, b in zip(self.seconds, before.seconds, strict=True)))

    @property
    def seconds(self) -> tuple[float, ...]:
        return msgspec.structs.astuple(self)


class Computed(msgspec.Struct, frozen=True):
    """By a node, as a stage, since it began with the model: in steps in which each row gave a token, and in the others."""

    decoding: ComputeParts
    prompts: ComputeParts
