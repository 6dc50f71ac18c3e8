"""Which nodes the cluster admits."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.membership.events import Joined
from shoal.sizes import human_bytes


@dataclass(frozen=True)
class AdmissionRules:
    """Which nodes the cluster admits."""

    min_memory: int = 0
    """Bytes."""
    min_speed: float = 0.0
    """Bytes of weights per second at decode."""
    max_nodes: int = 1024

    def refusal(self, node: Joined, version: str, others: int) -> str:
        """Why a node is refused, or ''. version: the cluster's. others: number of other members."""
        profile = node.profile
        if node.version != version:
            return f"this cluster runs shoal {version}, the node {node.version}; install the same version"
        if profile.memory < self.min_memory:
            return (
                f"it offers {human_bytes(profile.memory)} of memory, this cluster asks for {human_bytes(self.min_memory)}; raise --memory"
            )
        if profile.bytes_per_second < self.min_speed:
            return f"it reads {profile.bytes_per_second / 1e9:.2f} GB/s of weights, this cluster asks for {self.min_speed / 1e9:.2f}"
        if others >= self.max_nodes:
            return f"the cluster has {others} nodes and takes no more"
        return ""
