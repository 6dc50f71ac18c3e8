"""What a strategy has to do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, Protocol

from shoal.serving.balancing.inquiry import Inquiry
from shoal.serving.balancing.replica_state import R, ReplicaState


class Chance(Protocol):
    """random.Random is one."""

    def random(self) -> float:
        """In [0, 1)."""
        ...


class Chooser(Generic[R]):
    """Chooses among the replicas that are admitted. It learns of every change to one, so that no choice looks at all of them."""

    def admit(self, state: ReplicaState[R]) -> None:
        """It may be chosen from now on."""
        raise NotImplementedError

    def withdraw(self, state: ReplicaState[R]) -> None:
        """It may not, for now."""
        raise NotImplementedError

    def changed(self, state: ReplicaState[R]) -> None:
        """One that is admitted has another load, share, latency or other traits."""

    def choose(self, inquiry: Inquiry, without: Collection[ReplicaState[R]]) -> ReplicaState[R] | None:
        """One that is admitted and not in `without`; None: there is none. Changes nothing."""
        raise NotImplementedError

    def began(self, state: ReplicaState[R], inquiry: Inquiry) -> int:
        """It was sent to this one. Returns how many tokens of the prompt need not be computed there."""
        return 0

    def forget(self, state: ReplicaState[R]) -> None:
        """What it had computed is lost."""

    def remove(self, state: ReplicaState[R]) -> None:
        """One that was withdrawn will not come back."""
