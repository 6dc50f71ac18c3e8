"""What crosses from the head to the stages and back: one plan per step, only differences, and its result.

A plan is encoded once, at the head; every stage passes the same bytes on to the next.
"""

from __future__ import annotations

import msgspec

from shoal.request import Alternative, SamplingParams, Score


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """A sequence that the last stage will sample for. Sent once; later steps carry nothing of it."""

    sequence: int
    sampling: SamplingParams
    prompt: list[int]
    """Empty unless the repetition penalty needs it."""
    generated: list[int]
    """Tokens that were sampled before, on a route or by a head that is gone."""


class PromptQuery(msgspec.Struct, frozen=True, array_like=True):
    """What the last stage is to say about a chunk's rows. It needs to know nothing else for it, and keeps nothing of it."""

    followers: list[int]
    """The tokens that follow the first rows, to be scored; as many as there are, at most one for each row."""
    alternatives: int
    """That come with each score."""
    total: bool
    """The sum of the rows' final hidden states."""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Successive tokens of one sequence."""

    sequence: int
    position: int
    """Of the first token."""
    tokens: list[int]
    blocks: list[int]
    """KV blocks that join the sequence's table with this step."""
    sample: bool
    """Sample a token after the last of these."""
    asked: PromptQuery | None = None


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    step: int
    opened: list[Opened]
    closed: list[int]
    """Sequences that are over: forget all of them."""
    dropped: list[int]
    """Sequences whose block table starts anew (preempted): forget the table."""
    copies: list[tuple[int, int]]
    """KV blocks (from, to) to copy before the step runs: forks writing into a shared block."""
    chunks: list[Chunk]
    spans: list[tuple[int, int]] = []
    """Layers [first, end), ascending, whose keys and values these chunks fill anew where they were lost; empty: an ordinary step."""

    @property
    def rows(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    token: int
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    fault: str = ""
    """Why no token can be sampled, now or later: the request ends."""
    ours: bool = False
    """The fault is not the request's."""


class PromptOutputs(msgspec.Struct, frozen=True, array_like=True):
    """What was asked about the rows of one sequence's chunk."""

    sequence: int
    scores: list[Score]
    total: bytes = b""
    """float64, little-endian, as long as a hidden state."""
    fault: str = ""
    """Why it cannot be answered: the request ends. That is never the request's own fault."""


class StageTrace(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that a step spent in one stage."""

    wait: float
    """Received, but an earlier step still ran."""
    prepare: float
    """Decoding the plan and the activations, filling block tables."""
    compute: float
    sample: float
    encode: float


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    step: int
    sampled: list[Sampled]
    """A sample that is not here was put off: it is asked for again."""
    traces: list[StageTrace]
    missing: list[int] = []
    """Sequences that could not be refilled, because a journal does not reach back to all of their tokens."""
    examined: list[PromptOutputs] = []
