"""What the computing of a shard's stages was made of."""

from __future__ import annotations

from msgspec.structs import replace

from shoal.executor.base import Leases, Runtime
from shoal.observed.computing import ComputeParts


class PartCounts:
    """Of steps in which each row gives a token, and of the others. One thread counts; any thread may read."""

    def __init__(self) -> None:
        self.decoding, self.prompts = ComputeParts(), ComputeParts()

    def count(self, decodes: bool, parts: ComputeParts) -> None:
        if decodes:
            self.decoding += parts
        else:
            self.prompts += parts


class PartWatch:
    """From when it is made, one step of a runtime with weights from a store."""

    def __init__(self, runtime: Runtime, store: Leases) -> None:
        self._runtime, self._store = runtime, store
        self._before = self._now()

    def parts(self, seconds: float) -> ComputeParts:
        """seconds: that the step has computed; what is in no other part of them is `other`."""
        since = self._now() - self._before
        return replace(since, other=max(seconds - sum(since.seconds), 0.0))

    def _now(self) -> ComputeParts:
        spent = self._runtime.spent
        return replace(spent, waiting=spent.waiting + self._store.waited)
