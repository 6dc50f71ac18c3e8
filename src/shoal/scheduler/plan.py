"""What the head and the stages exchange: one plan per step, with differences only, and its result.

The head encodes a plan once; every stage passes the same bytes on to the next.
"""

from __future__ import annotations

import msgspec

from shoal.request import Alternative, SamplingParams, Score


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """A sequence that the last stage will sample for. Sent once; later steps do not repeat it."""

    sequence: int
    sampling: SamplingParams
    prompt: list[int]
    """Empty unless the repetition penalty needs it."""
    generated: list[int]
    """Tokens that were sampled before, on a route or by a head that is gone."""


class PromptQuery(msgspec.Struct, frozen=True, array_like=True):
    """What the last stage reports about a chunk's rows. It needs no other state for that and keeps none."""

    followers: list[int]
    """The tokens that follow the first rows, to be scored: at most one for each row."""
    alternatives: int
    """How many come with each score."""
    total: bool
    """Whether to return the sum of the rows' final hidden states."""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive tokens of one sequence."""

    sequence: int
    position: int
    """Position of the first token."""
    tokens: list[int]
    blocks: list[int]
    """KV blocks added to the sequence's table with this step."""
    sample: bool
    """Whether to sample a token after the last of these that is no draft."""
    asked: PromptQuery | None = None
    drafts: int = 0
    """How many of the tokens, at the end, are guesses at what will be sampled. After each that was right, another token is sampled."""


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    step: int
    opened: list[Opened]
    closed: list[int]
    """Sequences that have ended: the stages forget them entirely."""
    dropped: list[int]
    """Sequences whose block table starts anew (preempted): the stages forget the table."""
    copies: list[tuple[int, int]]
    """KV blocks (from, to) to copy before the step runs, for forks that write into a shared block."""
    chunks: list[Chunk]
    spans: list[tuple[int, int]] = []
    """Layers [first, end), ascending, whose lost keys and values these chunks recompute; empty: an ordinary step."""

    @property
    def rows(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    sequence: int
    token: int
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    fault: str = ""
    """Why no token can be sampled, now or later; the request ends."""
    ours: bool = False
    """Whether the fault is the cluster's, not the request's."""


class PromptOutputs(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the query about the rows of one sequence's chunk."""

    sequence: int
    scores: list[Score]
    total: bytes = b""
    """float64, little-endian, as long as a hidden state."""
    fault: str = ""
    """Why the query cannot be answered; the request ends. It is never the request's own fault."""


class StageTrace(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that a step spent in one stage."""

    wait: float
    """Received, while an earlier step still ran."""
    prepare: float
    """Decoding the plan and the activations, filling block tables."""
    compute: float
    sample: float
    encode: float
    arrived: float = 0.0
    """When it was received, on the stage's own clock; 0: not known."""


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    step: int
    sampled: list[Sampled]
    """In order; of a chunk with drafts, one more than drafts were right, or fewer. A sample that is not here was delayed: the head asks for it
    again."""
    traces: list[StageTrace]
    missing: list[int] = []
    """Sequences that could not be refilled because a journal does not hold all of their tokens."""
    examined: list[PromptOutputs] = []
    degraded: dict[int, int] = {}
    """By sequence: how many of its rows a stage computed without an expert that nobody could run; of the stage with most."""
