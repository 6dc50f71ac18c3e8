"""What a pipeline has in common with the others of its cluster, as it sees it."""

from __future__ import annotations

from typing import Protocol


class Tenancy(Protocol):
    def epoch(self) -> int:
        """A new one: no other route of any pipeline has it, and it is greater than all before."""
        ...

    def taken(self, node: int, waiting: bool) -> int | None:
        """Bytes of a member that its weights and KV blocks may not take; None: the member is not for it at all.

        waiting: counts what pipelines that are not placed yet should find, too.
        """
        ...

    def barred(self, node: int) -> str:
        """Why a member is not for it at all, for people."""
        ...

    def awaited(self) -> list[str]:
        """Names of the nodes that it is pinned to, and that are not there."""
        ...

    def crowded(self, node: int) -> bool:
        """Whether all pipelines together take more of a member than its limit, and nobody is making room there."""
        ...

    def release(self, reason: str) -> None:
        """Nodes that are being drained and have no part in a route any more may go home now, with that reason."""
        ...
