"""Draws tokens from logits. The draw for a position depends on (seed, position) alone, so a stream resumed elsewhere goes on alike."""

from __future__ import annotations

from time import monotonic

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ClusterError
from shoal.executor.base import Floats
from shoal.executor.constraint import Allowed, Constraint, GrammarFailed, Grammars
from shoal.executor.examination import score
from shoal.request import SamplingParams
from shoal.scheduler.plan import Opened, Sampled

_MASK = 2**64 - 1
_GREEDY = 1e-5  # temperatures below it leave only the likeliest token, and would overflow


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a counter (splitmix64's finaliser over both; Steele et al., 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    x ^= x >> 31
    return (x >> 11) * 2.0**-53


def distribution(logits: Floats, params: SamplingParams) -> NDArray[np.float64]:
    """Probabilities after temperature, top-k, top-p and min-p; cut tokens have 0. Ties at a cut all stay."""
    scaled = (logits - logits.max()) / np.float32(params.temperature)
    weights = np.exp(scaled, dtype=np.float32)
    if 0 < params.top_k < len(weights):
        weights[weights < np.partition(weights, -params.top_k)[-params.top_k]] = 0
    if params.top_p < 1:
        weights[weights < _nucleus_floor(weights, params.top_p)] = 0
    if params.min_p > 0:
        weights[weights < params.min_p * weights.max()] = 0
    probabilities = weights.astype(np.float64)
    return probabilities / probabilities.sum()


def _nucleus_floor(weights: Floats, top_p: float) -> float:
    """The smallest weight of the smallest set of largest weights that together reach top_p of all."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    count = min(512, len(weights))
    while True:  # the nucleus is small nearly always: sort only as much as it takes
        head = np.sort(np.partition(weights, -count)[-count:])[::-1]
        sums = np.cumsum(head, dtype=np.float64)
        reached = int(np.searchsorted(sums, wanted))
        if reached < count or count == len(weights):
            return float(head[min(reached, count - 1)])
        count = min(count * 8, len(weights))


def draw(logits: Floats, params: SamplingParams, position: int) -> int:
    """The index of the token that follows `position`. Raises ClusterError where the likeliest one's logit is no number."""
    likeliest = int(logits.argmax())
    if not np.isfinite(logits[likeliest]):
        raise ClusterError("the model's output is not a number: its weights or the precision they run in are unsound")
    if params.temperature < _GREEDY:
        return likeliest
    sums = np.cumsum(distribution(logits, params))
    wanted = uniform(params.seed, position) * float(sums[-1])
    drawn = int(np.searchsorted(sums, wanted, side="right"))
    return drawn if drawn < len(logits) else likeliest  # rounded up to all of it


class _State:
    def __init__(self, opened: Opened, grammars: Grammars | None, width: int) -> None:
        self.params = opened.sampling
        self.constraint: Constraint | None = None
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

    def drawn(self, token: int) -> None:
        self.counts[token] = self.counts.get(token, 0) + 1
        self.seen.add(token)

    def allowed(self, patience: float | None) -> Allowed | None:
        """See Constraint. Raises GrammarFailed."""
        if self.constraint is None:
            raise GrammarFailed("the last stage's node has no tokenizer of the model")
        return self.constraint.allowed(patience)

    def adjust(self, logits: Floats) -> Floats:
        """Repetition penalty over prompt and answer (Keskar et al., 2019); presence and frequency over the answer; bias."""
        out, p = logits.copy(), self.params
        if p.repetition_penalty != 1 and self.seen:
            seen = np.fromiter(self.seen, np.int64)
            out[seen] = np.where(out[seen] > 0, out[seen] / p.repetition_penalty, out[seen] * p.repetition_penalty)
        if self.counts and (p.presence_penalty or p.frequency_penalty):
            tokens = np.fromiter(self.counts.keys(), np.int64)
            times = np.fromiter(self.counts.values(), np.float32)
            out[tokens] -= np.float32(p.presence_penalty) + np.float32(p.frequency_penalty) * times
        for token, bias in p.logit_bias.items():
            out[token] += np.float32(bias)
        return out


class Sampler:
    """Holds what each open sequence's draws depend on. grammars: None where answers are held to none. width: logits of a row."""

    def __init__(self, grammars: Grammars | None = None, width: int = 0) -> None:
        self._grammars, self._width = grammars, width
        self._states: dict[int, _State] = {}
        self._held: list[tuple[Constraint, int]] = []  # what was drawn in this step under grammars
        self._until: float | None = None  # its draws wait for masks

    def __len__(self) -> int:
        return len(self._states)

    def open(self, opened: Opened) -> None:
        self._states[opened.sequence] = _State(opened, self._grammars, self._width)

    def close(self, sequence: int) -> None:
        self._states.pop(sequence, None)

    def settle(self) -> None:
        """After the draws of a step: what their grammars allow next is worked out from now on."""
        if self._grammars is not None:
            self._grammars.advance(self._held)
        self._held, self._until = [], None

    def _patience(self) -> float | None:
        """Seconds for which a draw may wait for its mask: what those before it in the step have left."""
        if self._grammars is None or self._grammars.patience is None:
            return None
        now = monotonic()
        if self._until is None:
            self._until = now + self._grammars.patience
        return max(self._until - now, 0.0)

    def sample(self, sequence: int, position: int, logits: Floats) -> Sampled | None:
        """Draws the token that follows `position`; None where what its grammar allows is not known yet: ask again.

        logits: [vocabulary]. Raises ClusterError where they are not numbers.
        """
        state = self._states[sequence]
        params = state.params
        adjusted = state.adjust(logits) if state.penalised else logits
        allowed: Allowed | None = None
        if params.grammar:
            try:
                allowed = state.allowed(self._patience())
            except GrammarFailed as error:
                return Sampled(sequence, -1, fault=f"the answer cannot be held to its grammar: {error}")
            if allowed is None:
                return None
        if allowed is None:
            token = draw(adjusted, params, position)
        elif allowed.but:
            adjusted = adjusted.copy() if adjusted is logits else adjusted
            adjusted[allowed.tokens] = -np.inf
            token = draw(adjusted, params, position)
        else:
            token = int(allowed.tokens[draw(adjusted[allowed.tokens], params, position)])
        state.drawn(token)
        if state.constraint is not None:
            self._held.append((state.constraint, token))
        if params.logprobs is None:
            return Sampled(sequence, token)
        own = score(logits, token, params.logprobs)
        return Sampled(sequence, token, own.logprob, own.alternatives)
