"""What placement knows: measured nodes and links, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class NodeProfile:
    name: str
    memory: int
    """Bytes that weights, KV blocks and workspace may take."""
    bytes_per_second: float
    """Bytes of weights per second when decoding one row."""
    flops: float
    """Operations per second at prefill."""
    disk: float = 0.0
    """Bytes of weights per second from its disk; 0: it cannot stream weights."""
    worker: bool = False
    """Whether it holds experts and no layers."""
    auto: bool = False
    """Whether the plan decides that."""


@dataclass(frozen=True)
class LinkSpeed:
    seconds: float = 200e-6
    """One way, for a small message."""
    bytes_per_second: float = 110e6

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.bytes_per_second <= 0:
            raise ValueError("a link takes at least 0 seconds and carries more than 0 bytes per second")


@dataclass(frozen=True)
class LinkSpeeds:
    """Each node's measured link to the head, by name. Unmeasured links count as gigabit Ethernet.

    Two nodes usually share one switch, so the link between them is taken to be the slower of their two links to the head.
    """

    to_head: dict[str, LinkSpeed] = field(default_factory=dict[str, LinkSpeed])

    def between(self, a: str, b: str) -> LinkSpeed:
        """The name '' is the head."""
        ends = [self.to_head.get(name, LinkSpeed()) for name in (a, b) if name]
        return LinkSpeed(max(end.seconds for end in ends), min(end.bytes_per_second for end in ends))


@dataclass(frozen=True)
class Demand:
    """What the placement must provide."""

    slots: int
    kv_tokens: int
    """Wanted size of the KV pool."""
    least_kv_tokens: int
    """Least size of the KV pool with which the model is of use."""
    context: int = 256
    """Tokens that a typical decode step reads, per slot."""
    given: bool = False
    """Whether the user named the size of the KV pool: then it is no smaller than it has to be, even if that were faster."""

    @classmethod
    def of(cls, slots: int, kv_tokens: int, context: int) -> Demand:
        """kv_tokens: as requested; 0: the default. context: of the longest sequence."""
        wanted = kv_tokens or slots * min(context, 2048)
        return cls(slots, wanted, min(wanted, max(context // 4, 256)), given=kv_tokens > 0)
