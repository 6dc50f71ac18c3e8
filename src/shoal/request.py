"""A request inside shoal, whichever public API it came through."""

from __future__ import annotations

import enum
from typing import NewType

import msgspec

from shoal.errors import InvalidRequest
from shoal.trace_context import TraceContext

RequestId = NewType("RequestId", str)
SequenceId = NewType("SequenceId", int)
BlockId = NewType("BlockId", int)

MAX_ALTERNATIVES = 20
MAX_CHOICES = 16
MAX_GRAMMAR = 256 << 10
"""Most characters of a grammar."""
GRAMMAR_FUEL, GRAMMAR_SYMBOLS, GRAMMAR_ITEMS = 500_000, 100_000, 2000
"""Limits for compiling a grammar, in llguidance's units: about 10 ms of lexer work; symbols; simultaneously open alternatives."""


class Priority(enum.IntEnum):
    """Order of service if not all can run: the lower value first. Waiting long enough raises a request (see the scheduler)."""

    URGENT = 0
    NORMAL = 1
    FLEX = 2
    BATCH = 3


class FinishReason(enum.StrEnum):
    STOP = "stop"
    """An end-of-text token, or a stop string."""
    LENGTH = "length"
    """max_tokens was reached, or the context is full."""
    CANCELLED = "cancelled"


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """How one sequence's tokens are sampled.

    The order is that of llama.cpp and vLLM: penalties and bias on the logits, then temperature, then top-k, top-p and
    min-p on the distribution. `temperature` 0 takes the likeliest token.
    """

    temperature: float = 1.0
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    logprobs: int | None = None
    """None: no log-probabilities; otherwise how many alternatives come besides the sampled token's own."""
    grammar: str = ""
    """The grammar that the answer must match, in llguidance's form (JSON); empty: none."""

    def check(self, vocabulary: int) -> None:
        """Raises InvalidRequest, naming the field, if a value is outside its range."""
        ranges: list[tuple[str, float, float, float]] = [
            ("temperature", self.temperature, 0, 5),
            ("top_k", self.top_k, 0, 2**31),
            ("top_p", self.top_p, 0, 1),
            ("min_p", self.min_p, 0, 1),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
            ("logprobs", self.logprobs or 0, 0, MAX_ALTERNATIVES),
            ("seed", self.seed, 0, 2**64 - 1),
        ]
        for name, value, low, high in ranges:
            if not low <= value <= high:  # this also catches NaN
                raise InvalidRequest(f"{name} must lie in [{low:g}, {high:g}], not {value}", name)
        if self.top_p == 0:
            raise InvalidRequest("top_p must be greater than 0", "top_p")
        if not 0 < self.repetition_penalty <= 10:
            raise InvalidRequest(f"repetition_penalty must lie in (0, 10], not {self.repetition_penalty}", "repetition_penalty")
        if len(self.grammar) > MAX_GRAMMAR:
            raise InvalidRequest(f"the grammar has {len(self.grammar)} characters; at most {MAX_GRAMMAR} are supported", "grammar")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < vocabulary:
                raise InvalidRequest(f"logit_bias names token {token}; the vocabulary has {vocabulary}", "logit_bias")
            if not -100 <= bias <= 100:
                raise InvalidRequest(f"logit_bias must lie in [-100, 100], not {bias}", "logit_bias")


class Request(msgspec.Struct, frozen=True):
    """A prompt to continue, as tokens. `n` choices share the prompt's KV blocks."""

    id: RequestId
    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    stop_tokens: frozenset[int] = frozenset()
    """Tokens that end a choice; they are not part of its text."""
    priority: Priority = Priority.NORMAL
    prompt_logprobs: int | None = None
    """None: none; otherwise the prompt's own tokens are scored, with this many alternatives each; max_tokens may then be 0."""
    embed: bool = False
    """Nothing is sampled: the answer is the mean of the prompt's last hidden states."""
    owner: str = ""
    """The id of the key that asked; empty: none was needed."""
    trace: TraceContext | None = None
    """The span of the request that asks for it."""

    @property
    def samples(self) -> int:
        """Most tokens that may be sampled for a choice."""
        return 0 if self.embed else self.max_tokens

    @property
    def examined(self) -> bool:
        """Whether something is asked about the prompt itself; the first choice answers it."""
        return self.embed or self.prompt_logprobs is not None


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    token: int
    logprob: float


class Score(msgspec.Struct, frozen=True, array_like=True):
    """The log-probability of a prompt token; the first one has none, because nothing precedes it."""

    token: int
    logprob: float | None
    alternatives: tuple[Alternative, ...] = ()


class TokenChunk(msgspec.Struct, frozen=True, array_like=True):
    """One token of one choice, or its end, or both. The last chunk of a choice has a finish reason.

    Answers about the prompt come first, in chunks of choice 0 that have neither: its scores in order, its embedding in one piece.
    """

    request: RequestId
    choice: int
    token: int | None
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    finish: FinishReason | None = None
    cached: int = 0
    """Prompt tokens that were found in the prefix cache."""
    scores: tuple[Score, ...] = ()
    embedding: bytes = b""
    """float32, little-endian, as long as a hidden state; not normalised."""
    degraded: int = 0
    """Tokens so far that were computed without an expert: of this choice, and of the prompt if it was computed for it. One that is computed
    again counts again."""

    @property
    def counts(self) -> bool:
        """Whether it is one of the answer's tokens: the token that ends a text counts, an end for another reason does not."""
        return self.token is not None or self.finish is FinishReason.STOP
