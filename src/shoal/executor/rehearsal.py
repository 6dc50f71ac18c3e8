"""A model run here and now, without a cluster, to see what disk and processor do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.weights import Weights
from shoal.native import BLOCK_TOKENS
from shoal.placement.timeline import Span, last
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.weights.activity import Sums
from shoal.weights.residency import Tally

_WARM = 0.5
"""The share of the steps that are run before any is measured, so that the experts in memory are those that are used."""


@dataclass(frozen=True)
class Rehearsal:
    batch: int
    held_bytes: int
    step_seconds: float
    """The median."""
    prompt_seconds: float
    """For all prompts."""
    seconds: float
    """Of the measured steps together."""
    sums: Sums
    """Of the measured steps."""
    tally: Tally
    spans: list[Span]
    """Of the last step."""


def rehearse(shard: Shard, weights: Weights, memory: int, batch: int, prompt: int, steps: int, seed: int = 0) -> Rehearsal:
    """Runs sequences of random tokens: their prompts, then steps of one token each. memory: bytes for weights if they are streamed; 0: all
    are held. prompt: tokens. Raises ShoalError, OSError."""
    layers = range(len(weights.spec.layers))
    blocks = -(-(prompt + steps + int(steps * _WARM) + 1) // BLOCK_TOKENS)
    shard.load(layers, weights, memory > 0)
    stage = shard.enter(layers, range(0), max(batch * blocks, 2), memory)
    run = _Run(stage, weights.spec.vocabulary, batch, blocks, random.Random(seed))
    began = perf_counter()
    run.prompts(prompt)
    prompts = perf_counter() - began
    for _ in range(int(steps * _WARM)):
        run.step()
    before, tally = shard.activity.sums, shard.tally
    hits, misses = tally.hits, tally.misses
    times = [run.step() for _ in range(steps)]
    sums = shard.activity.sums - before
    measured = Tally(hits=shard.tally.hits - hits, misses=shard.tally.misses - misses)
    return Rehearsal(batch, shard.nbytes, median(times), prompts, sum(times), sums, measured, last(shard.activity.spans, times[-1]))


class _Run:
    def __init__(self, stage: StageExecutor, vocabulary: int, batch: int, blocks: int, rng: random.Random) -> None:
        self._stage, self._vocabulary, self._batch, self._blocks, self._rng = stage, vocabulary, batch, blocks, rng
        self._steps, self._position = 0, 0

    def prompts(self, tokens: int) -> None:
        sampling = SamplingParams(temperature=0.0)
        opened = [Opened(sequence, sampling, [], []) for sequence in range(self._batch)]
        self._run(opened, tokens)

    def step(self) -> float:
        began = perf_counter()
        self._run([], 1)
        return perf_counter() - began

    def _run(self, opened: list[Opened], rows: int) -> None:
        chunks = [
            Chunk(
                sequence, self._position, [self._rng.randrange(self._vocabulary) for _ in range(rows)], [*self._new(sequence, rows)], True
            )
            for sequence in range(self._batch)
        ]
        self._stage.run(StepPlan(self._steps, opened, [], [], [], chunks), None)
        self._steps, self._position = self._steps + 1, self._position + rows

    def _new(self, sequence: int, rows: int) -> Iterator[int]:
        """KV blocks that a sequence gets with so many more tokens."""
        first, end = -(-self._position // BLOCK_TOKENS), -(-(self._position + rows) // BLOCK_TOKENS)
        yield from range(sequence * self._blocks + first, sequence * self._blocks + end)
