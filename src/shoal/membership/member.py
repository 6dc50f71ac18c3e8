"""A node of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from shoal.membership.events import Joined
from shoal.placement.profile import NodeProfile

_SLOWER = 2.0  # from this many times slower than measured, a node's measurement is corrected


@dataclass
class Member:
    joined: Joined
    heard: float
    suspect: bool = False
    draining: bool = False
    slower: float = 1.0
    cap: int | None = None
    """Bytes that its weights and KV blocks may take at most, whatever it offers."""

    @property
    def name(self) -> str:
        return self.joined.profile.name

    def replaced_by(self, joined: Joined) -> str:
        """Why it is gone if a node joins from its place; '' if the joining node is a different one."""
        if (self.joined.host, self.joined.tensor_port) != (joined.host, joined.tensor_port):
            return ""
        return "it came back" if self.joined.incarnation == joined.incarnation else "it was started anew"

    def mend(self, slower: float) -> bool:
        """It was seen to run `slower` times slower than measured. Returns whether that changes what is expected of it."""
        mended = slower if slower >= _SLOWER else 1.0
        if not mended / self.slower > 1.25 and not self.slower / mended > 1.25:
            return False
        self.slower = mended
        return True

    @property
    def profile(self) -> NodeProfile:
        """Its measured speed, corrected by what was seen since, and the memory that it may use."""
        p = self.joined.profile
        memory = p.memory if self.cap is None else min(p.memory, self.cap)
        return replace(p, memory=memory, bytes_per_second=p.bytes_per_second / self.slower, flops=p.flops / self.slower)

    def rename(self, name: str) -> None:
        self.joined = replace(self.joined, profile=replace(self.joined.profile, name=name))


class Departure(NamedTuple):
    """Why a node is no member any more. graceful: nobody had to be surprised."""

    reason: str
    graceful: bool
