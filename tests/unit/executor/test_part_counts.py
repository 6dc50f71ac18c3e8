"""What a stage's computing was made of: each part is counted where it is run, and all together are the seconds that the step tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Precision, RuntimeName
from shoal.errors import RemoteProtocolError
from shoal.executor.base import Floats
from shoal.executor.part_counts import PartCounts, PartWatch
from shoal.executor.store import WeightStore
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.observed.computing import ComputeParts
from shoal.placement.division import least
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from shoal.testing import toy
from tests.support import mixtures, tiny
from tests.support.expert_workers import Asking, Worker, every_expert, running
from tests.support.shards import Line, Node
from tests.support.streamed import Disk, finder, made

LAYERS = 3
BLOCKS = 128
PARTS = ("attention", "feed_forward", "experts", "waiting", "head", "other")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return SafetensorsWeights(tiny.saved(tiny.model("llama", num_hidden_layers=LAYERS), tmp_path_factory.mktemp("dense")))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    make = mixtures.Maker(tmp_path_factory.mktemp)
    return lambda name: make(name, Precision.Q8).weights


def line_of(weights: Weights, *layouts: range, runtime: RuntimeName = RuntimeName.NATIVE, **more: object) -> Line:
    line = Line(weights, blocks=BLOCKS, runtime=runtime, **more)  # pyright: ignore[reportArgumentType]
    line.enter(layouts, [Node(line) for _ in layouts])
    return line


def ran(parts: ComputeParts) -> set[str]:
    return {name for name in PARTS if getattr(parts, name) > 0}


def counts(line: Line) -> list[PartCounts]:
    return [node.shard.part_counts for node in line.nodes]


# What is counted where


def test_a_dense_model_has_no_experts_and_only_the_last_stage_has_a_head(dense: Weights) -> None:
    line = line_of(dense, range(1), range(1, LAYERS))
    line.add(0, tiny.TOKENS[:20])
    line.decode(3)
    first, last = counts(line)
    for parts in (first.decoding, first.prompts):
        assert ran(parts) - {"other"} == {"attention", "feed_forward"}
    for parts in (last.decoding, last.prompts):
        assert ran(parts) - {"other"} == {"attention", "feed_forward", "head"}


def test_a_mixture_has_experts_and_where_a_layer_is_dense_a_feed_forward_part(mixture: Callable[[str], Weights]) -> None:
    for name, expected in (("mixtral", {"experts"}), ("deepseek v3", {"experts", "feed_forward"})):
        line = line_of(mixture(name), range(mixtures.LAYERS))
        line.add(0, tiny.TOKENS[:20])
        (found,) = counts(line)
        assert ran(found.prompts) - {"other"} == {"attention", "head", *expected}


def test_onnx_counts_the_same_parts(dense: Weights) -> None:
    line = line_of(dense, range(LAYERS), runtime=RuntimeName.ONNXRUNTIME)
    line.add(0, tiny.TOKENS[:20])
    line.decode(1)
    (found,) = counts(line)
    assert ran(found.decoding) - {"other"} == ran(found.prompts) - {"other"} == {"attention", "feed_forward", "head"}


def test_steps_that_decode_are_apart_from_prompts_and_no_count_falls(dense: Weights) -> None:
    line = line_of(dense, range(LAYERS))
    line.add(0, tiny.TOKENS[:30])
    (found,) = counts(line)
    assert not ran(found.decoding) and ran(found.prompts)
    prompts, before = found.prompts, found.decoding
    for _ in range(4):
        line.decode(1)
        assert found.prompts == prompts and min((found.decoding - before).seconds) >= 0 < found.decoding.attention - before.attention
        before = found.decoding


def test_a_refill_is_counted_and_the_counts_go_on_from_epoch_to_epoch(dense: Weights) -> None:
    line = line_of(dense, range(LAYERS))
    line.add(0, tiny.TOKENS[:30])
    node, other = line.nodes[0], Node(line)
    before = node.shard.part_counts.prompts
    line.enter([range(1), range(1, LAYERS)], [other, node])
    assert line.refilled
    assert ran(other.shard.part_counts.prompts) >= {"attention", "feed_forward"}
    line.add(1, tiny.TOKENS[:10])
    assert node.shard.part_counts.prompts.attention > before.attention


def test_attention_is_what_grows_with_the_context(dense: Weights) -> None:
    """Medians, as this process may be paused at any time."""
    line = line_of(dense, range(LAYERS), chunk=512)
    (found,) = counts(line)

    def shares(steps: int = 15) -> tuple[float, float]:
        each: list[ComputeParts] = []
        for _ in range(steps):
            before = found.decoding
            line.decode(1)
            each.append(found.decoding - before)
        return float(np.median([one.attention for one in each])), float(np.median([one.feed_forward for one in each]))

    line.add(0, tiny.TOKENS[:8])
    short = shares()
    del line.tokens[0]
    line.add(1, (tiny.TOKENS * 60)[:3500])
    long = shares()
    assert long[0] / long[1] > 2 * short[0] / short[1]


# The sum


@pytest.mark.parametrize("runtime", [RuntimeName.NATIVE, RuntimeName.ONNXRUNTIME])
def test_the_parts_are_the_seconds_that_the_steps_tell(dense: Weights, runtime: RuntimeName) -> None:
    line = line_of(dense, range(1), range(1, LAYERS), runtime=runtime)
    for node, of in zip(line.nodes, counts(line), strict=True):
        assert node.stage is not None
        hidden: Floats | None = None if node is line.nodes[0] else np.ones((11, dense.spec.hidden), np.float32)
        told = 0.0
        for step in range(4):
            output = node.stage.run(plan(step), hidden)
            told += output.seconds[1]
            hidden = hidden if hidden is None else hidden[:1]
        assert sum((of.prompts + of.decoding).seconds) == pytest.approx(told) and told > 0


def plan(step: int) -> StepPlan:
    """A prompt of 11 tokens, then a token in each step, whatever is sampled."""
    if step:
        return StepPlan(step, [], [], [], [], [Chunk(0, 10 + step, [30 + step], [], True)])
    return StepPlan(0, [Opened(0, SamplingParams(temperature=0.0), [], [])], [], [], [], [Chunk(0, 0, tiny.TOKENS[:11], [1], True)])


def test_a_step_that_is_refused_counts_nothing(dense: Weights) -> None:
    line = line_of(dense, range(LAYERS))
    stage = line.nodes[0].stage
    assert stage is not None
    with pytest.raises(RemoteProtocolError):
        stage.run(StepPlan(0, [], [], [], [], [Chunk(0, 0, [-1], [1], False)]), None)
    assert not ran(line.nodes[0].shard.part_counts.prompts)


# Waiting


def test_waiting_for_the_disk_is_apart(mixture: Callable[[str], Weights], tmp_path: Path) -> None:
    weights = mixture("mixtral")
    room = least(made(weights, Precision.Q8, tmp_path))
    line = Line(weights, precision=Precision.Q8, packed=finder(tmp_path, Precision.Q8, Disk(0.02)))
    node = Node(line)
    line.enter([range(mixtures.LAYERS)], [node], [room])
    began = perf_counter()
    line.add(0, tiny.TOKENS[:20])
    took = perf_counter() - began
    found = node.shard.part_counts.prompts
    assert ran(found) >= {"attention", "experts", "waiting", "head"} and sum(found.seconds) <= took
    assert found.waiting > max(found.attention, found.experts)  # a read takes 10 ms, a layer much less
    node.shard.close()


def test_waiting_for_workers_is_apart(mixture: Callable[[str], Weights]) -> None:
    weights = mixture("mixtral")
    worker = Worker(weights, every_expert(weights), Precision.Q8)
    worker.delay = 0.02

    async def steps() -> tuple[float, ComputeParts]:
        asking = Asking(weights, every_expert(weights), Precision.Q8)
        async with running({"w": worker}) as links:
            told = (await asking.run(plan(0), links)).seconds[1]
        return told, asking.shard.part_counts.prompts

    told, found = asyncio.run(steps())
    assert found.waiting >= 0.02 * mixtures.LAYERS and sum(found.seconds) == pytest.approx(told)
    assert ran(found) >= {"attention", "experts", "waiting", "head"}


# The watch alone


class Clockwork(toy.ToyRuntime):
    """Says what it is told to have spent."""

    now = ComputeParts()

    @property
    def spent(self) -> ComputeParts:
        return self.now


class Slow(WeightStore):
    time = 0.0

    @property
    def waited(self) -> float:
        return self.time


seconds = st.floats(0, 10)
some = st.builds(ComputeParts, seconds, seconds, seconds, seconds, seconds)


@given(some, some, seconds, seconds, st.floats(0, 100))
def test_a_watch_tells_what_came_since_and_the_rest_is_other(a: ComputeParts, b: ComputeParts, c: float, d: float, whole: float) -> None:
    runtime, store = Clockwork(1), Slow()
    runtime.now, store.time = a, c
    watch = PartWatch(runtime, store)
    runtime.now, store.time = a + b, c + d
    found = watch.parts(whole)
    close = pytest.approx
    assert (found.attention, found.feed_forward, found.experts, found.head) == close(
        (b.attention, b.feed_forward, b.experts, b.head), abs=1e-9
    )
    assert found.waiting == close(b.waiting + d, abs=1e-9)
    assert found.other == close(max(whole - sum(b.seconds) - d, 0.0), abs=1e-9)


def test_a_runtime_that_measures_nothing_has_only_other() -> None:
    found = PartWatch(toy.ToyRuntime(1), WeightStore()).parts(0.5)
    assert found == ComputeParts(other=0.5)
