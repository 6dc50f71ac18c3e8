"""What layers with experts are said to cost, beside what real steps do: experts touched, bytes leased, operations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.base import BlockPart, Packed, WeightBlock
from shoal.executor.cost import model_cost
from shoal.executor.runtimes import factory
from shoal.executor.stage import StageExecutor
from shoal.executor.store import WeightStore, blocks_of
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.placement.cost import LayerCost
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, StepPlan
from tests.support import tiny, tiny_families

ROWS = (1, 2, 4, 8, 16, 32, 64)
LAYERS, HIDDEN, VOCABULARY = 2, 128, 2048
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 32, "num_experts_per_tok": 2},
    "qwen2 moe": {"num_experts": 64, "num_experts_per_tok": 4},  # with a shared expert
    "qwen3 moe": {"num_experts": 96, "num_experts_per_tok": 8},
    "deepseek v3": {"n_routed_experts": 64, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 0},
}


@torch.no_grad()
def mixture(name: str, skewed: bool = False) -> Any:
    """A random model whose routers use their experts evenly: they have orthogonal rows, and what they see is little more than the token's
    embedding, which prefers no direction.

    skewed: the second half of the experts has rows twice as long, so that they are used more.
    """
    sizes = {"hidden_size": HIDDEN, "vocab_size": VOCABULARY, "num_hidden_layers": LAYERS}
    built = tiny_families.model(name, **sizes, **MIXTURES[name])
    for label, values in [*built.named_parameters(), *built.named_buffers()]:
        if label.endswith("post_attention_layernorm.weight"):
            values.fill_(1.0)
        elif label.endswith("embed_tokens.weight"):
            values.mul_(100)
        elif label.endswith("correction_bias"):
            values.zero_()
        elif re.search(r"mlp\.gate\.weight$", label):
            torch.nn.init.orthogonal_(values)
            values[len(values) // 2 :] *= 1 + skewed
    return built


class Leases(WeightStore):
    """A store that knows what the last step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.leased: dict[WeightBlock, int] = {}

    def lease(self, block: WeightBlock) -> Packed:
        packed = super().lease(block)
        self.leased[block] = packed.nbytes
        return packed


@dataclass
class Machine:
    """All layers of a model in one stage, which gives a token each to sequences of their own."""

    weights: Weights
    precision: Precision = Precision.Q8
    store: Leases = field(default_factory=Leases)
    steps: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        layers = len(self.weights.spec.layers)
        runtime = factory(RuntimeName.NATIVE, self.precision, KvType.BF16, threads=1)(self.weights, 0)
        for block in blocks_of(range(layers), layers):
            self.store.put(block, runtime.pack(self.weights, block))
        runtime.open(max(ROWS))
        self._stage = StageExecutor(self.weights.spec, range(layers), runtime, self.store, max(ROWS), {}, self.weights)
        self._open: list[int] = []

    @property
    def costs(self) -> tuple[LayerCost, ...]:
        return model_cost(self.weights.spec, self.weights, self.precision, KvType.BF16, 512).layers

    def step(self, rows: int) -> list[np.ndarray]:
        """[experts] rows that each expert computed, of each layer."""
        before, self.store.leased = self.store.expert_rows, {}
        tokens = self.rng.integers(0, self.weights.spec.vocabulary, rows).tolist()
        closed, self._open = self._open, [self.steps * max(ROWS) + row for row in range(rows)]
        opened = [Opened(sequence, SamplingParams(temperature=0.0), [], []) for sequence in self._open]
        chunks = [Chunk(sequence, 0, [token], [row], False) for row, (sequence, token) in enumerate(zip(self._open, tokens, strict=True))]
        self._stage.run(StepPlan(self.steps, opened, closed, [], [], chunks), None)
        self.steps += 1
        after = self.store.expert_rows
        return [after[layer] - before[layer] for layer in sorted(after)]


def loaded(built: Any, folder: Path, precision: Precision = Precision.Q8) -> Machine:
    return Machine(SafetensorsWeights(tiny.saved(built, folder)), precision)


def touched(machine: Machine, rows: int) -> float:
    """Different experts of a layer that a step touches: the mean over steps and layers."""
    steps = [machine.step(rows) for _ in range(max(40, 640 // rows))]
    return float(np.mean([np.count_nonzero(counts) for step in steps for counts in step]))


@pytest.mark.parametrize("name", MIXTURES)
def test_as_many_experts_are_touched_as_predicted(name: str, tmp_path: Path) -> None:
    machine = loaded(mixture(name), tmp_path)
    cost, *others = machine.costs
    assert cost.experts is not None and set(others) == {cost}
    seen = {rows: touched(machine, rows) for rows in ROWS}
    assert seen == {rows: pytest.approx(cost.experts.touched(rows), rel=0.02) for rows in ROWS}
    read = {rows: cost.always.size + count * cost.experts.each.size for rows, count in seen.items()}
    assert read == {rows: pytest.approx(cost.read_bytes(rows), rel=0.02) for rows in ROWS}


def test_routing_with_favourites_touches_fewer(tmp_path: Path) -> None:
    machine = loaded(mixture("qwen3 moe", skewed=True), tmp_path)
    experts = machine.costs[0].experts
    assert experts is not None
    assert touched(machine, 1) == pytest.approx(experts.touched(1))
    assert all(touched(machine, rows) < 0.95 * experts.touched(rows) for rows in (8, 16, 32))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.Q8, Precision.Q4])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_bytes_held_are_those_of_the_blocks_that_a_step_leases(name: str, precision: Precision, tmp_path: Path) -> None:
    machine = loaded(mixture(name), tmp_path, precision)
    machine.step(max(ROWS))
    leased = machine.store.leased
    for layer, cost in enumerate(machine.costs):
        assert cost.held_bytes == leased[WeightBlock(layer, BlockPart.ATTENTION)] + leased[WeightBlock(layer, BlockPart.FEED_FORWARD)]
        assert cost.read_bytes(10**4) == pytest.approx(cost.held_bytes)  # every expert is touched


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.Q8, Precision.Q4])
def test_an_expert_is_read_with_the_bytes_that_it_adds_to_its_block(precision: Precision, tmp_path: Path) -> None:
    """Of two models, one has eight experts more; their routers are padded to the same 16 rows."""
    few, many = (loaded(tiny_families.model("mixtral", num_local_experts=count), tmp_path / str(count), precision) for count in (8, 16))
    for machine in (few, many):
        machine.step(1)
    experts = few.costs[0].experts
    assert experts is not None
    block = WeightBlock(0, BlockPart.FEED_FORWARD)
    assert many.store.leased[block] - few.store.leased[block] == 8 * experts.each.size


@pytest.mark.parametrize("name", MIXTURES)
def test_operations_are_those_of_the_matrices_that_the_rows_met(name: str, tmp_path: Path) -> None:
    built = mixture(name)
    machine = loaded(built, tmp_path)
    matrices = {label: values.numel() for label, values in built.named_parameters() if "layers.0." in label and values.ndim > 1}
    routed = sum(count for label, count in matrices.items() if re.search(r"\.experts\.", label))
    cost = machine.costs[0]
    assert cost.experts is not None
    for rows in ROWS:
        met = int(machine.step(rows)[0].sum())
        assert met == rows * cost.experts.chosen
        assert cost.flops(rows) == 2 * (rows * (sum(matrices.values()) - routed) + met * routed // cost.experts.count)
