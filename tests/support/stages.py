"""Runs plans through the stages of a model in one process, as a cluster would, and keeps the logits of every row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import Leases, Runtime, RuntimeFactory
from shoal.executor.constraint import Grammars
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.weights import Weights
from shoal.native import BLOCK_TOKENS
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan


def stage(
    weights: Weights, layers: range, *, blocks: int, make_runtime: RuntimeFactory, grammars: Grammars | None = None, context: int = 0
) -> StageExecutor:
    """A stage with nothing in its cache."""
    shard = Shard(make_runtime, grammars=grammars, context=context)
    shard.load(layers, weights)
    return shard.enter(layers, range(0), blocks)


class _Recording:
    """Keeps the logits of all rows of each step, picked or not."""

    def __init__(self, runtime: Runtime, seen: list[np.ndarray]) -> None:
        self._runtime, self._seen = runtime, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def logits(self, hidden: np.ndarray, picked: np.ndarray, leases: Leases) -> np.ndarray:
        out = self._runtime.logits(hidden, np.arange(len(hidden), dtype=np.int32), leases)
        self._seen.append(out)
        return out[picked]


class Stages:
    """One sequence through `splits` stages; token by token or in chunks."""

    def __init__(
        self,
        weights: Weights,
        splits: int = 1,
        precision: Precision = Precision.FP32,
        kv_type: KvType = KvType.FP32,
        blocks: int = 16,
        threads: int = 1,
        runtime: RuntimeName = RuntimeName.NATIVE,
        context: int = 0,
    ) -> None:
        self._recorded: list[np.ndarray] = []
        bounds = np.linspace(0, len(weights.spec.layers), splits + 1).astype(int).tolist()
        self._blocks, self._sequence, self._step = blocks, 0, 0
        self.afresh()

        def make(weights: Weights, layer: int) -> Any:
            return _Recording(factory(runtime, precision, kv_type, threads)(weights, layer), self._recorded)

        self._stages = [stage(weights, range(a, b), blocks=blocks, make_runtime=make, context=context) for a, b in pairwise(bounds)]

    def afresh(self) -> Stages:
        """Begins another sequence, in the memory of the one before."""
        self._recorded.clear()
        self._free = list(range(self._blocks))[::-1]  # a table that is not in order
        self._table: list[int] = []
        self._sequence, self._at = self._sequence + 1, 0
        return self

    def feed(self, tokens: Sequence[int]) -> int:
        """Computes the next tokens of the sequence; the likeliest one that follows."""
        opened = [] if self._at else [Opened(self._sequence, SamplingParams(temperature=0.0), [], [])]
        fresh = [self._free.pop() for _ in range(-(-(self._at + len(tokens)) // BLOCK_TOKENS) - len(self._table))]
        plan = StepPlan(self._step, opened, [], [], [], [Chunk(self._sequence, self._at, list(tokens), fresh, True)])
        hidden, sampled = None, []
        for stage in self._stages:
            output = stage.run(plan, hidden)
            hidden, sampled = output.hidden, output.sampled
        self._table += fresh
        self._step, self._at = self._step + 1, self._at + len(tokens)
        return sampled[0].token

    def logits(self, tokens: Sequence[int], chunk: int = 0) -> np.ndarray:
        """[tokens, vocabulary], computed in chunks of so many tokens; 0: at once."""
        size = chunk or len(tokens)
        for at in range(0, len(tokens), size):
            self.feed(tokens[at : at + size])
        return np.concatenate(self._recorded)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        out = [self.feed(prompt)]
        while len(out) < count:
            out.append(self.feed(out[-1:]))
        return out


def logits_in_turn(
    weights: Weights, sequences: Sequence[Sequence[int]], precision: Precision, *, splits: int = 6, threads: int = 2
) -> list[np.ndarray]:
    """Of each sequence, [tokens, vocabulary], in one step; each stage is gone when the next one is loaded, for models that are large in float32."""
    seen: list[np.ndarray] = []
    width = max(-(-len(tokens) // BLOCK_TOKENS) for tokens in sequences)
    opened = [Opened(i, SamplingParams(temperature=0.0), [], []) for i in range(len(sequences))]
    blocks = [list(range(i * width, (i + 1) * width)) for i in range(len(sequences))]
    chunks = [Chunk(i, 0, list(tokens), blocks[i], True) for i, tokens in enumerate(sequences)]
    hidden = None
    bounds = np.linspace(0, len(weights.spec.layers), splits + 1).astype(int).tolist()

    def make(weights: Weights, layer: int) -> Any:
        return _Recording(factory(RuntimeName.NATIVE, precision, KvType.FP32, threads)(weights, layer), seen)

    for a, b in pairwise(bounds):
        one = stage(weights, range(a, b), blocks=width * len(sequences), make_runtime=make)
        hidden = one.run(StepPlan(0, opened, [], [], [], chunks), hidden).hidden
    ends = np.cumsum([len(tokens) for tokens in sequences])
    return np.split(np.concatenate(seen), ends[:-1])
