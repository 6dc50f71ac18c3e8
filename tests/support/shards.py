"""Nodes without a network: shards in the order of their layers, some sequences in their caches, and epochs that deal the layers out anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import Leases
from shoal.executor.journal import JournalLimits
from shoal.executor.native_runtime import NativeRuntime
from shoal.executor.onnx_runtime import OnnxRuntime
from shoal.executor.packed_layers import PackedFinder
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.weights import Weights
from shoal.native import BLOCK_TOKENS
from shoal.placement.moves import overlap, spans
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, Sampled, StepPlan
from shoal.wire import codec
from shoal.wire.frame import WireCodec

PLENTY = 1 << 26


class Node:
    """A shard, and the layers whose keys and values are good in it."""

    def __init__(self, line: Line) -> None:
        self.shard = Shard(line.make, JournalLimits(line.journal, 0, line.codec), packed=line.packed)
        self.filled = range(0)
        self.stage: StageExecutor | None = None

    def kv(self) -> dict[int, bytes]:
        """All keys and values, by layer."""
        runtime = self.shard._runtime
        assert isinstance(runtime, NativeRuntime | OnnxRuntime)
        return {layer: memory.tobytes() for layer, memory in sorted(runtime._pool._layers.items())}


class Line:
    """Greedy sequences through the nodes of an epoch."""

    def __init__(
        self,
        weights: Weights,
        *,
        blocks: int = 16,
        journal: int = PLENTY,
        encoding: WireCodec = WireCodec.RAW,
        precision: Precision = Precision.FP32,
        runtime: RuntimeName = RuntimeName.NATIVE,
        kv_type: KvType = KvType.BF16,
        threads: int = 1,
        chunk: int = 40,
        packed: PackedFinder | None = None,
    ) -> None:
        """packed: finds the files of nodes that stream."""
        self.weights, self.blocks, self.journal, self.codec, self.packed = weights, blocks, journal, encoding, packed
        self.make = factory(runtime, precision, kv_type, threads)
        self.chunk = chunk
        self.nodes: list[Node] = []
        self.layouts: list[range] = []
        self.tokens: dict[int, list[int]] = {}
        """Of each sequence; the last one has been drawn, and not yet computed."""
        self.refilled: list[tuple[tuple[int, int], ...]] = []
        """The spans of each refilling step."""
        self._tables: dict[int, list[int]] = {}
        self._told: set[int] = set()
        self._opened: set[int] = set()
        self._free = list(range(blocks))
        self._steps = count()

    def enter(self, layouts: Sequence[range], nodes: Sequence[Node], memory: Sequence[int] = ()) -> list[int]:
        """A new epoch, as the head orders it: load, link, refill. Answers the sequences that the journals did not reach. memory: of each node
        for weights; 0, or none at all: they are held."""
        memory = memory or [0] * len(nodes)
        keeps = [overlap(layers, node.filled) for layers, node in zip(layouts, nodes, strict=True)]
        for layers, node, room in zip(layouts, nodes, memory, strict=True):
            node.shard.load(layers, self.weights, room > 0)
        for layers, keep, node, room in zip(layouts, keeps, nodes, memory, strict=True):
            node.stage, node.filled = node.shard.enter(layers, keep, self.blocks, room), keep
        self.nodes, self.layouts = list(nodes), list(layouts)
        self._told, self._opened = set(), set()
        lost = spans(zip(layouts, keeps, strict=True), len(self.weights.spec.layers))
        missing = self.refill(lost) if lost else []
        if missing:
            assert self.refill([(0, lost[-1][1])], missing) == []
        for layers, node in zip(layouts, nodes, strict=True):
            node.filled = layers
        return missing

    def refill(self, lost: list[tuple[int, int]], only: list[int] | None = None) -> list[int]:
        """Answers the sequences that could not be."""
        missing: list[int] = []
        for sequence in self.tokens if only is None else only:
            known = self.tokens[sequence][:-1]
            for at in range(0, len(known), self.chunk):
                chunk = Chunk(sequence, at, known[at : at + self.chunk], self._table(sequence), False)
                missing += self._run(StepPlan(next(self._steps), [], [], [], [], [chunk], lost))[1]
                self.refilled.append(tuple(lost))
        return sorted(set(missing))

    def add(self, sequence: int, prompt: Sequence[int]) -> None:
        """Computes a prompt in chunks and draws."""
        self.tokens[sequence], self._tables[sequence] = list(prompt), []
        self._compute([(sequence, at, list(prompt[at : at + self.chunk])) for at in range(0, len(prompt), self.chunk)], one_by_one=True)

    def decode(self, steps: int) -> None:
        for _ in range(steps):
            self._compute([(sequence, len(known) - 1, known[-1:]) for sequence, known in self.tokens.items()])

    def _compute(self, parts: list[tuple[int, int, list[int]]], one_by_one: bool = False) -> None:
        for group in [[part] for part in parts] if one_by_one else [parts]:
            chunks = [
                Chunk(sequence, at, tokens, self._table(sequence, at + len(tokens)), at + len(tokens) == len(self.tokens[sequence]))
                for sequence, at, tokens in group
            ]
            fresh = [chunk.sequence for chunk in chunks if chunk.sequence not in self._opened]
            self._opened.update(fresh)
            opened = [Opened(sequence, SamplingParams(temperature=0), [], []) for sequence in fresh]
            for sampled in self._run(StepPlan(next(self._steps), opened, [], [], [], chunks))[0]:
                self.tokens[sampled.sequence].append(sampled.token)

    def _table(self, sequence: int, length: int = 0) -> list[int]:
        """Blocks that the stages have not been told of."""
        table = self._tables[sequence]
        fresh = [] if sequence in self._told else list(table)
        self._told.add(sequence)
        while len(table) * BLOCK_TOKENS < length:
            table.append(self._free.pop())
            fresh.append(table[-1])
        return fresh

    def _run(self, plan: StepPlan) -> tuple[list[Sampled], list[int]]:
        hidden: np.ndarray | None = None
        missing: list[int] = []
        sampled: list[Sampled] = []
        for node in self.nodes:
            assert node.stage is not None
            output = node.stage.run(plan, hidden)
            missing += output.missing
            hidden, sampled = output.hidden, output.sampled
            if hidden is not None:
                sent = bytes(codec.encode(self.codec, hidden))
                hidden = codec.decode(self.codec, sent, plan.rows, node.stage.hidden)
        return sampled, missing

    def record(self) -> list[np.ndarray]:
        """Keeps the logits of all rows of the last stage's steps from now on, picked or not."""
        runtime, seen = self.nodes[-1].shard._runtime, list[np.ndarray]()
        assert runtime is not None
        plain = runtime.logits

        def logits(hidden: np.ndarray, picked: np.ndarray, leases: Leases) -> np.ndarray:
            seen.append(plain(hidden, np.arange(len(hidden), dtype=np.int32), leases))
            return seen[-1][picked]

        runtime.logits = logits
        return seen

    def kv(self) -> dict[int, bytes]:
        return {layer: memory for node in self.nodes for layer, memory in node.kv().items()}
