"""Trained Mixture-of-Experts models, made of SmolLM2, served over HTTP: split over three nodes, two and one, of which two are killed in mid-stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from shoal.config import KvType, Precision
from shoal.models.weights import GgufWeights
from shoal.text.tokenizer import Tokenizer
from tests.support import chats, tiny, tiny_families, upcycled
from tests.support.chats import disturbed
from tests.support.cluster import Cluster, cluster
from tests.support.stages import Stages

pytestmark = [pytest.mark.real, pytest.mark.slow]

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]
SHORT, LONG = 24, 60
ROOM = ("--memory", "3GiB")


def answer(made: Cluster, messages: list[dict[str, str]] = SKY, tokens: int = SHORT) -> str:
    return chats.answer(made, messages, tokens)


def dense(smollm2: Path) -> str:
    """What the dense model answers in float32."""
    weights = GgufWeights(smollm2)
    tokenizer = Tokenizer.open(smollm2, weights.file.meta)
    return tokenizer.decode(Stages(weights, kv_type=KvType.BF16).greedy(tokenizer.encode_chat(SKY), SHORT))


class Served(NamedTuple):
    model: Path
    precision: Precision


@pytest.fixture(scope="module", params=["equal experts", "experts that differ"])
def served(request: pytest.FixtureRequest, smollm2: Path) -> Served:
    """Equal experts answer as the dense model does where nothing is rounded; in float32 four take enough memory."""
    if request.param == "equal experts":
        return Served(upcycled.mixtral(smollm2, experts=4), Precision.FP32)
    return Served(upcycled.mixtral(smollm2, "perturbed"), Precision.AUTO)


@pytest.fixture(scope="module")
def made(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; those that are killed are not replaced."""
    with cluster(tmp_path_factory.mktemp("mixture")) as made:
        made.serve(
            *("--min-nodes", "3", "--spread", "--context", "1024", "--model", str(served.model), "--precision", str(served.precision))
        )
        for i in range(3):
            made.join("--name", f"n{i}", *ROOM)
        made.until_ready()
        yield made


def test_it_answers_in_english_from_any_number_of_nodes_and_streams_go_on(made: Cluster, served: Served, smollm2: Path) -> None:
    first, story = answer(made), answer(made, STORY, LONG)
    assert "light" in first
    assert len(story.split()) > LONG // 2
    if served.precision is Precision.FP32:
        assert first == dense(smollm2)
    for left, stage in ((2, 1), (1, 0)):
        layers = made.layers()
        assert disturbed(made, sorted(layers, key=lambda name: layers[name])[stage], STORY, LONG) == story
        made.until_spread(left)
        assert answer(made) == first, f"{left} nodes"
        assert answer(made, STORY, LONG) == story, f"{left} nodes"
    made.until_idle()
    assert "Traceback" not in made.story()


def test_a_directory_with_tensors_for_each_expert(smollm2: Path, tmp_path: Path) -> None:
    """Of 240 routed experts and a shared one in each of 30 layers, as half-precision floats."""
    folder = upcycled.checkpoint(upcycled.qwen2_moe(smollm2, 1))
    with cluster(tmp_path) as made:
        made.up("--model", str(folder), "--nodes", "2", *ROOM)
        made.until_ready()
        assert "light" in answer(made)


# What is refused


def refused(made: Cluster, *flags: str) -> str:
    process = made.up(*flags)
    assert process.wait() != 0
    assert "Traceback" not in process.said
    return process.said


def test_a_damaged_directory_is_refused_before_any_node_is_started(tmp_path: Path) -> None:
    folder = tiny.saved(tiny_families.model("mixtral"), tmp_path / "model")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_local_experts": 9}))
    with cluster(tmp_path) as made:
        said = refused(made, "--model", str(folder), "--nodes", "1")
    assert "block_sparse_moe.gate.weight has shape [8, 64] where the model's sizes say [9, 64]" in " ".join(said.split())
    assert "node-1" not in said


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_that_cannot_run_experts_is_refused_before_any_node_is_started(runtime: str, smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    model = upcycled.mixtral(smollm2, "slices")
    with cluster(tmp_path) as made:
        said = refused(made, "--model", str(model), "--runtime", runtime, "--nodes", "1")
    assert f"{runtime} cannot run {model.stem}: it has experts (Mixture-of-Experts); use --runtime native" in " ".join(said.split())
    assert "node-1" not in said
