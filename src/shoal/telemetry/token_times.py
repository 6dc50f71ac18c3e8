"""How long requests wait for their first step, and their tokens for each other. Pure: moments come from outside, by one clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shoal.pipeline.timing import StepPart
from shoal.request import RequestId, TokenChunk
from shoal.telemetry.distribution import Distribution


class TokenTimes:
    """Of the answers under way."""

    def __init__(self, queued: Distribution, between: Distribution) -> None:
        """queued: from a request's acceptance to its first step. between: from a token of a choice to the next."""
        self._queued, self._between = queued, between
        self._answers: dict[str, tuple[RequestId, ...]] = {}
        self._waiting: dict[RequestId, float] = {}
        self._latest: dict[RequestId, dict[int, float]] = {}
        """When each choice got its latest token."""

    def begun(self, answer: str, requests: Iterable[RequestId], now: float) -> None:
        """Its requests were accepted. `ended` must follow."""
        self._answers[answer] = ids = tuple(requests)
        for id in ids:
            self._waiting[id], self._latest[id] = now, {}

    def ended(self, answer: str) -> None:
        for id in self._answers.pop(answer, ()):
            self._waiting.pop(id, None)
            self._latest.pop(id, None)

    def step(self, parts: Sequence[StepPart], sent: float) -> None:
        if self._waiting:
            for part in parts:
                if (accepted := self._waiting.pop(part.request, None)) is not None:
                    self._queued.observe(sent - accepted)

    def sampled(self, chunks: Iterable[TokenChunk], now: float) -> None:
        for chunk in chunks:
            if chunk.counts and (latest := self._latest.get(chunk.request)) is not None:
                if (before := latest.get(chunk.choice)) is not None:
                    self._between.observe(now - before)
                latest[chunk.choice] = now

    def __len__(self) -> int:
        """Requests of which something is known."""
        return len(self._latest)
