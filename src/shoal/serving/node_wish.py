"""That a model lacks nodes, for whoever can provide them."""

from __future__ import annotations

import msgspec


class NodeWish(msgspec.Struct, frozen=True):
    """nodes: more than there are; 0: no more. replicas: that are to run on them."""

    model: str
    nodes: int
    replicas: int
    reason: str

    def same(self, other: NodeWish) -> bool:
        """But for the words."""
        return (self.model, self.nodes, self.replicas) == (other.model, other.nodes, other.replicas)
