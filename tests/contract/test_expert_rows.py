"""Counts of rows by expert: those of transformers' routing, however a prompt is cut and wherever the layers have been."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.runtimes import factory
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.models.weights import SafetensorsWeights
from shoal.scheduler.plan import Chunk, StepPlan
from tests.support import tiny, tiny_families

LAYERS = 3
EXPERTS, CHOSEN = 8, 2

Counts = dict[int, list[int]]


@pytest.fixture(scope="module")
def built() -> Any:
    return tiny_families.model("mixtral", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def weights(built: Any, tmp_path_factory: pytest.TempPathFactory) -> SafetensorsWeights:
    return SafetensorsWeights(tiny.saved(built, tmp_path_factory.mktemp("mixtral")))


@torch.no_grad()
def routed(built: Any, tokens: list[int]) -> Counts:
    """By transformers."""
    logits = built(torch.tensor([tokens]), output_router_logits=True).router_logits
    chosen = [layer.softmax(-1).topk(CHOSEN).indices.numpy().ravel() for layer in logits]
    return {layer: np.bincount(experts, minlength=EXPERTS).tolist() for layer, experts in enumerate(chosen)}


def made() -> Shard:
    return Shard(factory(RuntimeName.NATIVE, Precision.FP32, KvType.FP32, 1))


def entered(shard: Shard, weights: SafetensorsWeights, layers: range) -> StageExecutor:
    shard.load(layers, weights)
    return shard.enter(layers, range(0), 8)


def run(stages: Sequence[StageExecutor], tokens: list[int], cut: int = 1000) -> None:
    fresh = list(range(8))
    for step, at in enumerate(range(0, len(tokens), cut)):
        hidden = None
        plan = StepPlan(step, [], [], [], [], [Chunk(0, at, tokens[at : at + cut], [] if step else fresh, False)])
        for stage in stages:
            hidden = stage.run(plan, hidden).hidden


def counted(*shards: Shard) -> Counts:
    total: dict[int, np.ndarray] = {}
    for shard in shards:
        for layer, rows in shard.expert_rows.items():
            total[layer] = total.get(layer, np.zeros(EXPERTS, np.uint64)) + rows
    return {layer: rows.tolist() for layer, rows in sorted(total.items())}


@pytest.mark.parametrize("cut", [1000, 13, 1])
def test_they_are_those_of_transformers(built: Any, weights: SafetensorsWeights, cut: int) -> None:
    first, last = made(), made()
    run([entered(first, weights, range(1)), entered(last, weights, range(1, LAYERS))], tiny.TOKENS, cut)
    assert counted(first, last) == routed(built, tiny.TOKENS)


def test_layers_that_move_and_come_back_go_on(built: Any, weights: SafetensorsWeights) -> None:
    shards, tokens = (made(), made()), tiny.TOKENS
    seen: list[list[Counts]] = []
    for cut in (1, 2, 1):
        run([entered(shards[0], weights, range(cut)), entered(shards[1], weights, range(cut, LAYERS))], tokens)
        seen.append([counted(shard) for shard in shards])
    assert counted(*shards) == {layer: [3 * n for n in rows] for layer, rows in routed(built, tokens).items()}
    for before, after in pairwise(seen):
        for old, new in zip(before, after, strict=True):
            assert all(a <= b for layer, rows in old.items() for a, b in zip(rows, new[layer], strict=True))


def test_a_model_that_is_given_up_is_still_counted(weights: SafetensorsWeights) -> None:
    shard = made()
    run([entered(shard, weights, range(LAYERS))], tiny.TOKENS)
    before = counted(shard)
    shard.close()
    assert counted(shard) == before


def test_a_dense_model_has_none(tmp_path: Path) -> None:
    weights = SafetensorsWeights(tiny.saved(tiny.model("llama"), tmp_path))
    shard = made()
    run([entered(shard, weights, range(LAYERS))], tiny.TOKENS)
    assert shard.expert_rows == {}


def test_they_are_read_while_steps_run(weights: SafetensorsWeights) -> None:
    shard = made()
    stage = entered(shard, weights, range(LAYERS))
    before = counted(shard)
    reads = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: [run([stage], tiny.TOKENS) for _ in range(20)])
        while not running.done():
            now = counted(shard)
            assert all(a <= b for layer, rows in before.items() for a, b in zip(rows, now[layer], strict=True))
            before, reads = now, reads + 1
        running.result()
    assert reads
    assert [sum(rows) for rows in counted(shard).values()] == [20 * len(tiny.TOKENS) * CHOSEN] * LAYERS
