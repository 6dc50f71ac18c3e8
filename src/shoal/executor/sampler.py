"""Samples tokens from logits. The sample for a position depends only on (seed, position), so a stream resumed elsewhere
continues identically."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from shoal.errors import ClusterError
from shoal.executor.base import Floats
from shoal.executor.constraint import Allowed, GrammarFailed, Held, Holder
from shoal.executor.examination import UNSOUND, score
from shoal.request import SamplingParams
from shoal.scheduler.plan import Opened, Sampled

log = structlog.get_logger()

Logits = NDArray[np.floating[Any]]

_MASK = 2**64 - 1
_LEAST_PENALTY = 1e-250  # of repetition: the quotient of any float32 and this is within float64, so the order is kept
_GREEDY = 1e-5  # temperatures below it leave only the likeliest token; dividing by them would overflow


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter (splitmix64's finaliser over both; Steele et al., 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    x ^= x >> 31
    return (x >> 11) * 2.0**-53


def distribution(logits: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """Probabilities after temperature, top-k, top-p and min-p; cut tokens have 0. Tokens tied at a cut all stay."""
    with np.errstate(over="ignore"):  # a value out of range is infinitely far below the likeliest
        scaled = (logits - logits.max()) / np.float32(params.temperature)
        weights: Floats = np.exp(scaled, dtype=np.float32)
    if 0 < params.top_k < len(weights):
        weights[weights < np.partition(weights, -params.top_k)[-params.top_k]] = 0
    if params.top_p < 1:
        weights[weights < _nucleus_floor(weights, params.top_p)] = 0
    if params.min_p > 0:
        weights[weights < params.min_p * weights.max()] = 0
    probabilities = weights.astype(np.float64)
    return probabilities / probabilities.sum()


def _nucleus_floor(weights: Floats, top_p: float) -> float:
    """The smallest weight in the smallest set of largest weights that together reach the share top_p of all."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    count = min(512, len(weights))
    while True:  # the nucleus is almost always small: sort only as much as needed
        head = np.sort(np.partition(weights, -count)[-count:])[::-1]
        sums = np.cumsum(head, dtype=np.float64)
        reached = int(np.searchsorted(sums, wanted))
        if reached < count or count == len(weights):
            return float(head[min(reached, count - 1)])
        count = min(count * 8, len(weights))


def sample(logits: Logits, params: SamplingParams, position: int) -> int:
    """The index of the token that follows `position`. Raises ClusterError if the likeliest token's logit is not a number."""
    likeliest = int(logits.argmax())
    if not np.isfinite(logits[likeliest]):
        raise ClusterError(UNSOUND)
    if params.temperature < _GREEDY:
        return likeliest
    sums = np.cumsum(distribution(logits, params))
    wanted = uniform(params.seed, position) * float(sums[-1])
    sampled = int(np.searchsorted(sums, wanted, side="right"))
    return sampled if sampled < len(logits) else likeliest  # the sum was rounded up to the whole


class _State:
    def __init__(self, opened: Opened, grammars: Holder | None, width: int) -> None:
        self.params = opened.sampling
        self.constraint: Held | None = None
        if grammars is not None and self.params.grammar:
            self.constraint = grammars.constrain(self.params.grammar, opened.generated, width)
        self.counts: dict[int, int] = {}
        self.seen = set(opened.prompt) | set(opened.generated)
        for token in opened.generated:
            self.counts[token] = self.counts.get(token, 0) + 1

    @property
    def penalised(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0 or bool(p.logit_bias)

    def sampled(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1
        self.seen.add(token)

    def allowed(self, patience: float | None) -> Allowed | None:
        """See Constraint. Raises GrammarFailed."""
        if self.constraint is None:
            raise GrammarFailed("the last stage's node has no tokenizer of the model", ours=True)
        return self.constraint.allowed(patience)

    def adjust(self, logits: Floats) -> NDArray[np.float64]:
        """Repetition penalty over prompt and answer (Keskar et al., 2019); presence and frequency penalties over the answer; bias.

        In float64: a penalty far below 1 can turn a logit into a value that float32 cannot hold.
        """
        out, p = logits.astype(np.float64), self.params
        if p.repetition_penalty != 1 and self.seen:
            seen, penalty = np.fromiter(self.seen, np.int64), max(p.repetition_penalty, _LEAST_PENALTY)
            out[seen] = np.where(out[seen] > 0, out[seen] / penalty, out[seen] * penalty)
        if self.counts and (p.presence_penalty or p.frequency_penalty):
            tokens = np.fromiter(self.counts.keys(), np.int64)
            times = np.fromiter(self.counts.values(), np.float64)
            out[tokens] -= p.presence_penalty + p.frequency_penalty * times
        for token, bias in p.logit_bias.items():
            out[token] += bias
        return out


class Sampler:
    """Holds the sampling state of each open sequence. grammars: None if answers have no grammars. width: logits of a row."""

    def __init__(self, grammars: Holder | None = None, width: int = 0) -> None:
        self._grammars, self._width = grammars, width
        self._states: dict[int, _State | Sampled] = {}  # or why nothing can be sampled
        self._held: list[tuple[Held, int]] = []  # what was sampled in this step under grammars
        self._until: float | None = None  # until when this step's samples wait for masks

    def __len__(self) -> int:
        return len(self._states)

    def open(self, opened: Opened) -> None:
        try:
            self._states[opened.sequence] = _State(opened, self._grammars, self._width)
        except Exception as error:  # noqa: BLE001 - it ends only this sequence, not the step
            self._states[opened.sequence] = _failed(opened.sequence, error)

    def close(self, sequence: int) -> None:
        self._states.pop(sequence, None)

    def settle(self) -> None:
        """Call it after the samples of a step: from now on, what their grammars allow next is worked out."""
        self._advance()
        self._until = None

    def _advance(self) -> None:
        if self._grammars is not None:
            self._grammars.advance(self._held)
        self._held = []

    def _patience(self) -> float | None:
        """Seconds that a sample may wait for its mask: what the earlier samples of the step have left."""
        if self._grammars is None or self._grammars.patience is None:
            return None
        now = monotonic()
        if self._until is None:
            self._until = now + self._grammars.patience
        return max(self._until - now, 0.0)

    def run(self, sequence: int, position: int, drafts: Sequence[int], logits: Floats) -> list[Sampled]:
        """Samples the token that follows `position`, and for as long as each is the draft for its place, the one after it: what single steps
        would sample. Less if a mask is not known yet, or where the next token cannot be sampled: the next step says why.

        logits: [1 + drafts, vocabulary]
        """
        out: list[Sampled] = []
        for i, row in enumerate(logits):
            sampled = self.sample(sequence, position + i, row)
            if sampled is None or (out and sampled.fault):
                break
            out.append(sampled)
            if i == len(drafts) or sampled.token != drafts[i]:
                break
            self._advance()
        return out

    def sample(self, sequence: int, position: int, logits: Floats) -> Sampled | None:
        """Samples the token that follows `position`, or says why there is none. None if what its grammar allows is not known
        yet: ask again.

        logits: [vocabulary]. Any error is a fault of this sequence's sample; the others of the step are not affected.
        """
        try:
            state = self._states[sequence]
            return state if isinstance(state, Sampled) else self._sample(sequence, state, position, logits)
        except Exception as error:  # noqa: BLE001 - see above
            return _failed(sequence, error)

    def _sample(self, sequence: int, state: _State, position: int, logits: Floats) -> Sampled | None:
        params = state.params
        adjusted: Logits = state.adjust(logits) if state.penalised else logits
        allowed: Allowed | None = None
        if params.grammar and (allowed := state.allowed(self._patience())) is None:
            return None
        if allowed is None:
            token = sample(adjusted, params, position)
        elif allowed.but:
            adjusted = adjusted.copy() if adjusted is logits else adjusted
            adjusted[allowed.tokens] = -np.inf
            token = sample(adjusted, params, position)
        else:
            token = int(allowed.tokens[sample(adjusted[allowed.tokens], params, position)])
        own = None if params.logprobs is None else score(logits, token, params.logprobs)
        state.sampled(token)
        if state.constraint is not None:
            self._held.append((state.constraint, token))
        return Sampled(sequence, token) if own is None else Sampled(sequence, token, own.logprob, own.alternatives)


def _failed(sequence: int, error: Exception) -> Sampled:
    if isinstance(error, GrammarFailed):
        return Sampled(sequence, -1, fault=f"the answer cannot be held to its grammar: {error}", ours=error.ours)
    if isinstance(error, ClusterError):
        return Sampled(sequence, -1, fault=str(error), ours=True)
    log.error("a sample failed unexpectedly", sequence=sequence, exc_info=error)
    return Sampled(sequence, -1, fault=f"no token could be sampled: {str(error) or type(error).__name__}", ours=True)
