"""What a plan is made for, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.config import KvType
from shoal.placement.hardware import Hardware

KV_ELEMENT = {KvType.FP32: 4.0, KvType.BF16: 2.0, KvType.Q8: 1 + 2 / 32, KvType.Q4: 3 / 4 + 2 / 32}
"""Bytes of one number of the keys and values, on average; with its part of the scale that 32 numbers share."""


@dataclass(frozen=True)
class Workload:
    prompt: int
    """Tokens of a request, on average."""
    answer: int
    """Tokens of an answer, on average."""
    streams: int = 1
    """Most requests at once."""
    chunk: int = 512
    """Rows of a prompt that are computed at once; 0: the whole prompts of a micro-batch."""
    kv_types: tuple[KvType, ...] = (KvType.BF16,)
    """Those that may be chosen."""

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.answer < 1 or self.streams < 1 or self.chunk < 0 or not self.kv_types:
            raise ValueError("a workload has prompts, answers and streams of at least 1, chunks of at least 0, and a type of KV")


@dataclass(frozen=True)
class Policy:
    """How a model runs on one machine."""

    batch: int
    """N: rows of a decode step, one for each request that runs."""
    micro: int
    """μ: rows that are computed at once; the batch is a whole number of micro-batches."""
    attention: str
    """The device that computes attention, over its own tier."""
    feed_forward: str
    """The device that multiplies with weights."""
    kv_share: float
    """r_c: of the keys and values, the part in the tier of the attention's device; the rest is read from the tier below."""
    kv_type: KvType
    weight_bytes: tuple[int, ...]
    """[tiers] of the weights that are held, from the slowest tier to the fastest."""
    ahead: bool
    """Whether all streamed weights of a layer are read before it is known which experts are chosen, or only those that are missed."""

    @property
    def micro_batches(self) -> int:
        return self.batch // self.micro

    def weight_share(self, hardware: Hardware) -> float:
        """r_w: of the weights, the part in the tier of the feed-forward device."""
        return self.weight_bytes[hardware.device(self.feed_forward).tier] / max(sum(self.weight_bytes), 1)
