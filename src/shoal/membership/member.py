"""A node of the cluster: its state, and why it may be left out for a while."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from shoal.membership.events import Joined
from shoal.placement.profile import NodeProfile
from shoal.retry import doubling

_SLOWER = 2.0  # from this many times slower than measured, a node's measurement is corrected
_LEFT_OUT, _MOST_LEFT_OUT = 15.0, 600.0  # seconds for which a failed node is left out, the first time and at most


@dataclass
class Member:
    joined: Joined
    heard: float
    suspect: bool = False
    failed: str = ""
    """Why it is left out of routes, until `retry`."""
    failures: int = 0
    retry: float = 0.0
    draining: bool = False
    slower: float = 1.0
    loaded: tuple[range, ...] = ()
    staged: bool = False
    """Whether it entered an epoch and was not told to rest since."""
    filled: range = range(0)
    experts: bool = False
    """Whether it has loaded experts for stages on other nodes, and was not told to make room since."""
    weight_bytes: int = 0
    runtime: str = ""
    cap: int | None = None
    """Bytes that its weights and KV blocks may take at most, whatever it offers."""

    @property
    def name(self) -> str:
        return self.joined.profile.name

    def usable(self, now: float) -> bool:
        """Whether a route may include it."""
        return (not self.failed or self.retry <= now) and not self.draining

    def replaced_by(self, joined: Joined) -> str:
        """Why it is gone if a node joins from its place; '' if the joining node is a different one."""
        if (self.joined.host, self.joined.tensor_port) != (joined.host, joined.tensor_port):
            return ""
        return "it came back" if self.joined.incarnation == joined.incarnation else "it was started anew"

    def blame(self, reason: str, now: float) -> None:
        """Leaves it out for a time that doubles with each failure."""
        self.failed = reason
        self.failures += 1
        self.retry = now + doubling(_LEFT_OUT, self.failures - 1, _MOST_LEFT_OUT)

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
