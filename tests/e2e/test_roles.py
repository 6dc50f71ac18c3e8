"""Nodes whose role the head decides, over HTTP: experts on a node too small for a layer instead of a disk; a worker that becomes a stage when
the only one is killed, and a node that comes and becomes a worker. The answers are those of one process that holds everything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import random_moe
from benchmarks.random_moe import Shape
from shoal.config import EngineSettings, KvType, Precision
from shoal.control.client import describe
from shoal.errors import NotEnoughMemory
from shoal.executor.cost import model_cost
from shoal.models.weights import GgufWeights
from shoal.placement.cost import ModelCost
from shoal.placement.partition import place
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from shoal.text.tokenizer import Tokenizer
from tests.support import chats, upcycled
from tests.support.chats import disturbed
from tests.support.cluster import Cluster, cluster, until
from tests.support.stages import Stages

pytestmark = [pytest.mark.real, pytest.mark.slow]

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]
SHORT, LONG = 24, 60
ENGINE = EngineSettings(slots=4, kv_tokens=1024, context=1024)


class Answers(NamedTuple):
    sky: str
    story: str


def alone(model: Path) -> Answers:
    """What one process answers that holds everything."""
    weights = GgufWeights(model)
    tokenizer = Tokenizer.open(model, weights.file.meta)
    stages = Stages(weights, precision=Precision.AUTO, kv_type=KvType.BF16, threads=2)
    told = [
        tokenizer.decode(stages.afresh().greedy(tokenizer.encode_chat(messages), tokens))
        for messages, tokens in ((SKY, SHORT), (STORY, LONG))
    ]
    return Answers(*told)


def answers(made: Cluster) -> Answers:
    return Answers(chats.answer(made, SKY, SHORT), chats.answer(made, STORY, LONG))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as made:
        yield made
        assert "Traceback" not in made.story()


def serve(made: Cluster, model: Path, slots: int) -> None:
    limits = ("--slots", str(slots), "--kv-tokens", str(ENGINE.kv_tokens), "--context", str(ENGINE.context))
    made.serve("--min-nodes", "2", "--model", str(model), *limits)


def parts(made: Cluster) -> tuple[set[str], set[str]]:
    """Nodes that run layers, and nodes that serve experts."""
    nodes = asyncio.run(describe(f"127.0.0.1:{made.control_port}")).nodes
    return {node.name for node in nodes if any(part.end_layer for part in node.parts)}, {
        node.name for node in nodes if " experts" in node.state
    }


def until_parts(made: Cluster, stages: int, workers: int) -> tuple[set[str], set[str]]:
    def found() -> tuple[set[str], set[str]] | None:
        now = parts(made)
        return now if (len(now[0]), len(now[1])) == (stages, workers) and made.answers("/health/ready") else None

    return until(found, made.story)


def memories(cost: ModelCost) -> tuple[int, int]:
    """Of two nodes that have room for all together, where the smaller one has none for a layer: it has room for two experts of each, which the
    larger one lacks."""
    layer = cost.layers[0]
    assert layer.experts is not None
    each, per_layer = layer.experts.each.size, 2
    small = cost.workspace + len(cost.layers) * per_layer * each + each // 2
    (stage,) = place([NodeProfile("any", 1 << 40, 1e9, 1e12)], LinkSpeeds(), cost, DEMAND).stages
    kv = sum(layer.kv_bytes for layer in cost.layers) * DEMAND.kv_tokens
    large = stage.weight_bytes + kv + cost.workspace + cost.last_bytes - len(cost.layers) * per_layer * each + each // 2
    assert small < cost.workspace + layer.held_bytes
    with pytest.raises(NotEnoughMemory):
        place([NodeProfile("large", large, 1e9, 1e12), NodeProfile("small", small, 1e9, 1e12)], LinkSpeeds(), cost, DEMAND)
    return large, small


DEMAND = Demand.of(ENGINE.slots, ENGINE.kv_tokens, ENGINE.context)


def test_a_node_too_small_for_a_layer_holds_experts_in_place_of_a_disk(made: Cluster, smollm2: Path, tmp_path: Path) -> None:
    model = upcycled.mixtral(smollm2, "perturbed", layers=3)
    wanted, weights = alone(model), GgufWeights(model)
    cost = model_cost(weights.spec, weights, ENGINE.precision, ENGINE.kv_type, ENGINE.step_tokens)
    large, small = memories(cost)

    def join(name: str, memory: int) -> None:
        """Its disk is of unknown speed, for which there is a fixed guess."""
        made.join("--name", name, "--memory", f"{memory}B", "--journal", "0", "--packed-cache", str(tmp_path / name), SHOAL_ROLE="auto")

    serve(made, model, ENGINE.slots)
    join("large", large)
    join("small", small)
    made.until_ready()
    assert parts(made) == ({"large"}, {"small"})
    assert answers(made) == wanted
    join("other", large)
    assert disturbed(made, "large", STORY, LONG) == wanted.story
    assert until_parts(made, 1, 1) == ({"other"}, {"small"})
    assert answers(made) == wanted


def test_a_worker_becomes_a_stage_and_a_node_that_comes_its_worker(made: Cluster, smollm2: Path) -> None:
    """The experts are so large that one stream is faster where two nodes read them."""
    shape = Shape("qwen3moe", layers=2, width=2048, heads=16, kv_heads=4, head_dim=128, experts=4, chosen=2, neurons=8192)
    model = random_moe.write(shape, smollm2)
    wanted = alone(model)
    serve(made, model, 1)
    for name in "ab":
        made.join("--name", f"node-{name}", "--memory", "2GiB", "--role", "auto")
    made.until_ready()
    (stage,), (worker,) = until_parts(made, 1, 1)
    assert answers(made) == wanted
    assert disturbed(made, stage, STORY, LONG) == wanted.story
    assert until_parts(made, 1, 0) == ({worker}, set())
    assert answers(made) == wanted
    made.join("--name", "node-c", "--memory", "2GiB", "--role", "auto")
    assert set.union(*until_parts(made, 1, 1)) == {worker, "node-c"}
    assert answers(made) == wanted
