"""A model whose layers are integer arithmetic: exact, tiny, and spoilt by any token that is missing, stale or misplaced.

A token's cell in a layer is a hash of its input and of the sum of all cells before it, read through the block table; the cell
is also the layer's output. The last layer's output decides the logits. The rest of a stage (block tables, journals, sampler) is
the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from shoal.config import KvType
from shoal.control import messages as control
from shoal.errors import RemoteProtocolError, WeightsUnreadable
from shoal.executor.base import Angles, BlockPart, Collect, Floats, Ints, Leases, Program, Send, StageBatch, StageOutput, WeightBlock, here
from shoal.executor.constraint import Grammars
from shoal.executor.expert_split import Experts, RemoteExperts, RemoteLayer
from shoal.executor.journal import JournalLimits
from shoal.executor.kv_pool import HostRuntime
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.executor.store import RowCounts
from shoal.models.matrix import StoredMatrix
from shoal.models.spec import Dense, GroupedQuery, LayerSpec, ModelSpec, Rope
from shoal.native import BLOCK_TOKENS
from shoal.node.expert_service import Bank
from shoal.node.expert_tables import together
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.request import Request, Score
from shoal.scheduler.cost import StepLoad
from shoal.scheduler.plan import Chunk, Opened, PromptQuery, StepPlan
from shoal.weights.expert_reads import ExpertReads
from shoal.wire.routed import Routed, Sums

VOCABULARY = 24
END = 3
"""The token that ends a text; the others are the letters from a on."""
LAYER_BYTES = 1000
KV_BYTES = 4
_MASK = 0xFFFFFF  # integers that float32 holds exactly
EXPERTS = 6
"""Of each layer, where it has any: each row takes two, one for the upper half of its cell's bits and one for the lower."""
_HALF = 0xFFF


def spec(layers: int) -> ModelSpec:
    layer = LayerSpec(GroupedQuery(1, 1, 2, Rope()), Dense(1))  # two values of two bytes for a key and for a value: a cell fits twice
    return ModelSpec("toy", 1, VOCABULARY, 1e-6, 4096, True, (layer,) * layers)


def cost(layers: int, layer_bytes: int = LAYER_BYTES, experts: bool = False) -> ModelCost:
    """experts: whether the larger part of a layer are experts."""
    matrices, one = Matrices(layer_bytes, 1000), Matrices(layer_bytes // 8, 125)
    routed = ExpertsCost(EXPERTS, 2, one) if experts else None
    always = Matrices(layer_bytes - EXPERTS * one.size, 250) if experts else matrices
    layer = LayerCost(always, KV_BYTES, attention=4, experts=routed)
    return ModelCost((layer,) * layers, matrices, activation_bytes=4, workspace=100)


def chosen(cell: int) -> tuple[int, int]:
    """The experts of a row, by its cell."""
    first = cell % EXPERTS
    return first, (first + 1 + cell // EXPERTS % (EXPERTS - 1)) % EXPERTS


def half(cell: int, upper: bool) -> int:
    return cell & ~_HALF if upper else cell & _HALF


class ToyBank:
    """Experts for stages on other machines."""

    def __init__(self) -> None:
        self.held: dict[int, frozenset[int]] = {}
        self.expert_rows: dict[int, RowCounts] = {}
        self.rows = 0
        """That it has run."""

    def run(self, routed: Routed) -> Sums:
        if lacking := set(routed.experts.tolist()) - self.held.get(routed.layer, frozenset()):
            raise RemoteProtocolError(f"expert {min(lacking)} of layer {routed.layer} is not here")
        self.rows += routed.rows
        sums = np.zeros((routed.rows, 1))
        for row, weight in zip(routed.index.tolist(), routed.weights.tolist(), strict=True):
            sums[row, 0] += half(int(routed.x[row, 0]), weight == 2)
        return sums


class ToyWeights:
    def __init__(self, layers: int) -> None:
        self.spec = spec(layers)

    def matrix(self, name: str) -> StoredMatrix:
        values = (np.arange(VOCABULARY, dtype=np.float32) * 7919 + 13).reshape(-1, 1)
        return StoredMatrix("f32", values.view(np.uint8), 1)

    def format(self, name: str) -> str:
        return "f32"

    def vector(self, name: str) -> Floats | None:
        return None

    def check(self, layers: range) -> None:
        pass

    def forget(self) -> None:
        pass


@dataclass(frozen=True)
class _ToyBlock:
    nbytes: int


def _with_experts(layer: int, cells: list[int], remote: RemoteLayer) -> Program[list[int]]:
    """The cells again, put together from what their experts say, here and elsewhere. Of the experts that both have, cells decide which run here."""
    away = remote.only | {expert for expert in remote.also if (expert + sum(cells)) % 3}
    sums = np.zeros((len(cells), 1))
    entries: list[tuple[int, int, float]] = []  # of experts elsewhere: number, row, weight
    for row, cell in enumerate(cells):
        for upper, expert in enumerate(chosen(cell)):
            if expert in away:
                entries.append((expert, row, 1.0 + upper))
            else:
                sums[row, 0] += half(cell, bool(upper))
    if entries:
        entries.sort()
        rows = np.array(sorted({row for _, row, _ in entries}), np.int32)
        experts, counts = np.unique([expert for expert, _, _ in entries], return_counts=True)
        routed = Routed.of(
            layer,
            experts.astype(np.int32),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            np.searchsorted(rows, [row for _, row, _ in entries]).astype(np.int32),
            np.array([weight for _, _, weight in entries], np.float32),
            np.array(cells, np.float32)[rows, None],
        )
        yield Send(routed, rows, remote.also)
        late = set(experts.tolist())
        for part in (yield Collect()):
            sums[part.rows] += part.sums
            late.difference_update(part.experts.tolist())
        for expert, row, weight in entries:
            if expert in late:
                assert expert in remote.also, "an expert that is nowhere else did not come"
                sums[row, 0] += half(cells[row], weight == 2)
    return sums[:, 0].astype(np.int64).tolist()


class ToyRuntime(HostRuntime):
    """Takes the place of the native kernels."""

    name = "toy"

    def __init__(self, layers: int) -> None:
        super().__init__(spec(layers), kv_type=KvType.BF16)

    def pack(self, weights: Any, block: WeightBlock, without: Container[int] = ()) -> _ToyBlock:
        return _ToyBlock(LAYER_BYTES if block.part is BlockPart.FEED_FORWARD else 0)

    def forward(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Floats:
        return here(self.program(hidden, batch, angles, layers, leases))

    def program(self, hidden: Floats, batch: StageBatch, angles: list[Angles], layers: range, leases: Leases) -> Program[Floats]:
        positions, starts = batch.positions.tolist(), batch.starts.tolist()
        places: list[Ints] = []
        for table, position, first, end in zip(batch.tables, positions, starts, starts[1:], strict=False):
            at = np.arange(position + end - first, dtype=np.int32)
            places.append(table[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS)
        out: list[int] = hidden[:, 0].astype(np.int64).tolist()
        for layer in layers:
            for part in (BlockPart.ATTENTION, BlockPart.FEED_FORWARD):
                leases.lease(WeightBlock(layer, part))
            cells = self._pool.of(layer).view(np.uint32).reshape(-1, 2)[:, 0]
            for place, position, first, end in zip(places, positions, starts, starts[1:], strict=False):
                total = int(cells[place[:position]].sum(dtype=np.int64))
                for row in range(first, end):
                    mixed = (out[row] * 2654435761 + total * 40503 + layer * 97 + 12345) & 0xFFFFFFFF
                    out[row] = cell = (mixed ^ (mixed >> 13)) & _MASK
                    total += cell
                cells[place[position:]] = out[first:end]  # the next sequence may share them
            if (remote := leases.elsewhere(layer)) is not None:
                out = yield from _with_experts(layer, out, remote)
                for place, position, first, end in zip(places, positions, starts, starts[1:], strict=False):
                    cells[place[position:]] = out[first:end]
        return np.array(out, np.float32).reshape(-1, 1)

    def logits(self, hidden: Floats, picked: Ints, leases: Leases) -> Floats:
        x = hidden[picked, 0].astype(np.int64)[:, None] * 31 + np.arange(VOCABULARY, dtype=np.int64) * 1000003
        return ((x ^ (x >> 7)) % 8191).astype(np.float32) / np.float32(1024)

    def normed(self, hidden: Floats, leases: Leases) -> Floats:
        return hidden


class _Letters(TokenizerWrapper):
    """The toy's tokens, for llguidance."""

    def __init__(self) -> None:
        self.is_tokenizer_wrapper = True
        self.eos_token_id, self.bos_token_id, self.special_token_ids = END, None, [END]
        self.tokens = [b"<end>" if token == END else bytes([97 + token]) for token in range(VOCABULARY)]

    def __call__(self, text: str | bytes) -> list[int]:
        return [byte - 97 for byte in (text.encode() if isinstance(text, str) else text)]


@cache
def vocabulary() -> LLTokenizer:
    return LLTokenizer(_Letters())


def grammars() -> Grammars:
    """No sample is delayed, so that nothing depends on the speed of this machine."""
    return Grammars(vocabulary, patience=None)


def make_runtime(weights: Any, layer: int) -> ToyRuntime:
    return ToyRuntime(len(weights.spec.layers))


def expected(request: Request, layers: int) -> list[list[int]]:
    """The expected tokens of each choice, from a single stage without faults."""
    return [list(alone(request, choice, layers)) for choice in range(request.n)]


def examined(request: Request, layers: int) -> tuple[list[Score], bytes]:
    """The expected scores and embedding of a prompt, as far as requested, from a single stage without faults."""
    if not request.examined:
        return [], b""
    prompt, scored = request.prompt, request.prompt_logprobs is not None
    stage, blocks = _stage(request, layers)
    asked = PromptQuery(prompt[1:] if scored else [], request.prompt_logprobs or 0, request.embed)
    (found,) = stage.run(StepPlan(0, [], [], [], [], [Chunk(0, 0, prompt, list(range(blocks)), False, asked)]), None).examined
    mean = (np.frombuffer(found.total, "<f8") / len(prompt)).astype("<f4").tobytes()
    return [Score(prompt[0], None), *found.scores] if scored else [], mean


def _stage(request: Request, layers: int, held: Grammars | None = None) -> tuple[StageExecutor, int]:
    """A stage that holds the request, and its KV blocks."""
    shard = Shard(make_runtime, grammars=held)
    shard.load(range(layers), ToyWeights(layers))
    blocks = -(-(len(request.prompt) + request.samples) // BLOCK_TOKENS)
    return shard.enter(range(layers), range(0), blocks), blocks


def alone(request: Request, choice: int, layers: int) -> Iterator[int]:
    """The tokens of one choice, from a single stage without faults; computed on demand."""
    held = grammars()
    stage, blocks = _stage(request, layers, held)
    sampling = msgspec.structs.replace(request.sampling, seed=(request.sampling.seed + choice) % 2**64)
    tokens, at = list(request.prompt), 0
    try:
        for step in range(request.samples):
            opened = [] if step else [Opened(0, sampling, request.prompt, [])]
            chunk = Chunk(0, at, tokens[at:], [] if step else list(range(blocks)), True)
            (sampled,) = stage.run(StepPlan(step, opened, [], [], [], [chunk]), None).sampled
            if sampled.token in request.stop_tokens:
                return
            at = len(tokens)
            tokens.append(sampled.token)
            yield sampled.token
    finally:
        held.close()


class Disk:
    """What a node reads weights from that do not fit into its memory: in simulated time, sometimes late, and sometimes not at all."""

    def __init__(self, rng: Random, layer_bytes: int, seconds: float = 0.01, late: float = 0.05, failing: float = 0.02) -> None:
        """layer_bytes: of each layer, and of the head. seconds: of a read. late: the share of the reads that take up to a hundred times as long. failing: of the steps in which one
        fails."""
        self.layer_bytes = layer_bytes
        self._rng, self._seconds, self._late, self._failing = rng, seconds, late, failing
        self.steps = self.failed = 0

    def read(self, layers: int) -> float:
        """Seconds until all of a step's reads have come, however they are ordered, eight at a time. Raises WeightsUnreadable."""
        self.steps += 1
        if self._rng.random() < self._failing:
            self.failed += 1
            raise WeightsUnreadable("a simulated disk", "nothing can be read")
        times = [self._seconds * (self._rng.uniform(1, 100) if self._rng.random() < self._late else 1) for _ in range(layers)]
        return max([*times, sum(times) / 8])

    def replaced(self) -> None:
        self._failing = 0.0


class _Entered:
    """A stage of one epoch. It reports steps that it runs after another stage has replaced it. Its steps take simulated time. disk: from
    which layers come that are not in memory; None: all are."""

    def __init__(self, stage: StageExecutor, model: ToyModel, disk: Disk | None = None, streamed: int = 0) -> None:
        self._stage, self._model = stage, model
        self._disk, self._streamed, self._broken = disk, streamed, False
        self._last = stage.layers.stop == len(model.spec.layers)
        self.nbytes, self.runtime, self.hidden = stage.nbytes, stage.runtime, stage.hidden

    def program(self, plan: StepPlan, hidden: Floats | None) -> Program[StageOutput]:
        self._model.late += self._model.entered is not self
        reading = 0.0
        if self._disk is not None and plan.chunks:
            assert not self._broken, "a stage ran on whose weights could not be read"
            try:
                reading = self._disk.read(self._streamed)
            except WeightsUnreadable:
                self._broken = True
                raise
        out = yield from self._stage.program(plan, hidden)
        seconds = self._model.spend(reading + self._model.seconds.of(plan, len(self._stage.layers), self._last))
        return replace(out, seconds=(0.0, seconds, 0.0))


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step, per layer except for the logits."""

    step: float = 0.004
    row: float = 2e-5
    context: float = 2e-7
    """Per row and token that it attends to."""
    logits: float = 1e-5
    """Per row whose logits are computed."""

    def of(self, plan: StepPlan, layers: int, last: bool) -> float:
        load = sum((StepLoad.of_chunk(chunk) for chunk in plan.chunks), StepLoad())
        return layers * (self.step + self.row * load.rows + self.context * load.context) + last * self.logits * load.logits


class ToyModel:
    """A node's part of the toy model: the real shard."""

    def __init__(
        self,
        layers: int,
        journals: JournalLimits,
        seconds: Seconds = Seconds(),
        spend: Callable[[float], float] = lambda seconds: seconds,
        disk: Disk | None = None,
    ) -> None:
        """spend: makes the step that just ran take about that long; returns how long it does take. disk: None: nothing is streamed."""
        self._disk = disk
        self.spec = spec(layers)
        self.seconds, self.spend = seconds, spend
        self.journals = journals
        self.late = 0
        """Steps that a stage ran after the next one was entered."""
        self.entered: _Entered | None = None
        self._grammars = grammars()
        self.shard = Shard(make_runtime, journals=journals, grammars=self._grammars)
        self._weights = ToyWeights(layers)
        self.bank = ToyBank()

    @property
    def layers(self) -> list[range]:
        return self.shard.layers

    @property
    def nbytes(self) -> int:
        return self.shard.nbytes

    @property
    def runtime(self) -> str:
        return self.shard.runtime

    @property
    def expert_rows(self) -> dict[int, RowCounts]:
        return self.shard.expert_rows

    @property
    def expert_reads(self) -> ExpertReads:
        return self.shard.expert_reads

    def shed(self, wanted: list[range]) -> None:
        self.shard.shed(wanted)

    def load(self, layers: range, streamed: bool = False, elsewhere: Experts | None = None) -> None:
        assert not streamed or self._disk is not None, "weights are to come from a disk that is not there"
        self.shard.load(layers, self._weights, elsewhere=elsewhere)

    def hold(self, experts: Experts, memory: int = 0) -> Bank:
        self.bank.held = together([self.bank.held, experts])
        return self.bank

    def free(self, wanted: Experts) -> None:
        self.bank.held = {layer: held & wanted.get(layer, frozenset()) for layer, held in self.bank.held.items()}

    def enter(self, layers: range, keep: range, blocks: int, memory: int = 0, remote: RemoteExperts | None = None) -> _Entered:
        stage, streamed = self.shard.enter(layers, keep, blocks, remote=remote), 0
        if memory and self._disk is not None:
            parts = len(layers) + (layers.stop == len(self.spec.layers))
            streamed = parts - memory // self._disk.layer_bytes
            assert streamed > 0, "what fits is not to be read again and again"
        self.entered = _Entered(stage, self, self._disk if memory else None, streamed)
        return self.entered

    def unpacked(self, layers: list[int]) -> dict[int, Path]:
        return {}

    def usable(self, layer: int) -> bool:
        return False

    @property
    def packed(self) -> dict[int, Path]:
        return {}

    def rest(self) -> None:
        self.entered = None
        self.shard.rest()

    def close(self) -> None:
        self.shard.close()
        self._grammars.close()

    def report(self, report: control.PipelineReport) -> None:
        report.journal_bytes = self.shard.journal_bytes
