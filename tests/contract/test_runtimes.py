"""What every runtime must hold: the same model, as transformers has it, however it is split, cut, rounded and examined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shoal.config import KvType, Precision, RuntimeName
from shoal.executor.runtimes import factory
from shoal.models.weights import GgufWeights, SafetensorsWeights
from shoal.request import SamplingParams
from shoal.scheduler.plan import Chunk, Opened, PromptQuery, StepPlan
from tests.support import tiny
from tests.support.stages import Stages, stage

FAMILIES = {"llama": {"attention_bias": True}, "mistral": {"sliding_window": 20}, "qwen2": {}, "qwen3": {"head_dim": 32}}
TRAINED = [(7 * i + 3) % 60 for i in range(45)]  # more than a KV block

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("runtime", [runtime for runtime in RuntimeName if runtime is not RuntimeName.AUTO]),
]

Model = Callable[[str], tuple[Any, SafetensorsWeights]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Of a family: as transformers has it, and its weights."""
    built = {family: tiny.model(family, **changes) for family, changes in FAMILIES.items()}
    made = {family: (one, SafetensorsWeights(tiny.saved(one, tmp_path_factory.mktemp(family)))) for family, one in built.items()}
    return made.__getitem__


@pytest.fixture(scope="module")
def exact(smollm2_weights: GgufWeights) -> np.ndarray:
    """Logits of trained weights in float32."""
    return Stages(smollm2_weights, precision=Precision.FP32).logits(TRAINED)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_transformers_computes(model: Model, family: str, runtime: RuntimeName) -> None:
    built, weights = model(family)
    close(Stages(weights, runtime=runtime).logits(tiny.TOKENS), tiny.logits(built, tiny.TOKENS))


def test_so_it_does_split_and_in_chunks(model: Model, runtime: RuntimeName) -> None:
    built, weights = model("qwen3")
    close(Stages(weights, 2, runtime=runtime).logits(tiny.TOKENS, 13), tiny.logits(built, tiny.TOKENS))


def test_steps_with_drafts_say_what_single_steps_say(model: Model, runtime: RuntimeName) -> None:
    _, weights = model("qwen3")
    said = Stages(weights, runtime=runtime).greedy(tiny.TOKENS[:9], 12)
    make = factory(runtime, Precision.FP32, KvType.FP32, threads=1)
    one = stage(weights, range(len(weights.spec.layers)), blocks=2, make_runtime=make)
    opened, again = [Opened(0, SamplingParams(temperature=0), [], [])], list[int]()
    tokens, at, drafts = tiny.TOKENS[:9], 0, list[int]()
    for step, wrong in enumerate((0, 9, 2, 0, 1, 9, 9)):
        plan = StepPlan(
            step, opened, [], [], [], [Chunk(0, at, [*tokens[at:], *drafts], [1, 0] if not step else [], True, None, len(drafts))]
        )
        sampled = [found.token for found in one.run(plan, None).sampled]
        at, opened = len(tokens) + len(sampled) - 1, []
        tokens, again = tokens + sampled, again + sampled
        drafts = [token if i != wrong else token + 1 for i, token in enumerate(said[len(again) : len(again) + 3])]
    assert again[:12] == said


@pytest.mark.parametrize(("precision", "most"), [(Precision.Q8, 0.06), (Precision.Q4, 0.5)])
def test_rounded_weights_are_near(model: Model, runtime: RuntimeName, precision: Precision, most: float) -> None:
    built, weights = model("llama")
    ours = Stages(weights, precision=precision, runtime=runtime).logits(tiny.TOKENS)
    assert 0 < distance(ours, tiny.logits(built, tiny.TOKENS)) < most


@pytest.mark.parametrize(("kv_type", "most"), [(KvType.BF16, 0.01), (KvType.Q8, 0.05), (KvType.Q4, 0.3)])
def test_rounded_keys_and_values_are_near_and_the_same_however_split(
    model: Model, runtime: RuntimeName, kv_type: KvType, most: float
) -> None:
    built, weights = model("mistral")
    ours = Stages(weights, runtime=runtime, kv_type=kv_type).logits(tiny.TOKENS)
    assert 0 < distance(ours, tiny.logits(built, tiny.TOKENS)) < most
    close(Stages(weights, 2, runtime=runtime, kv_type=kv_type).logits(tiny.TOKENS, 13), ours)


@pytest.mark.real
def test_trained_weights_are_near(smollm2_weights: GgufWeights, exact: np.ndarray, runtime: RuntimeName) -> None:
    assert distance(Stages(smollm2_weights, precision=Precision.Q8, runtime=runtime).logits(TRAINED), exact) < 0.12


def test_it_says_of_a_prompt_what_transformers_says(model: Model, runtime: RuntimeName) -> None:
    (built, weights), tokens = model("llama"), tiny.TOKENS
    make = factory(runtime, Precision.FP32, KvType.FP32, threads=1)
    first, last = (stage(weights, layers, blocks=4, make_runtime=make) for layers in (range(1), range(1, 3)))
    plan = StepPlan(0, [], [], [], [], [Chunk(5, 0, tokens, [2, 0, 1], False, PromptQuery(tokens[1:], 3, True))])
    between = first.run(plan, None)
    assert between.examined == ()
    (found,) = last.run(plan, between.hidden).examined
    right = torch.log_softmax(torch.from_numpy(tiny.logits(built, tokens)), -1).numpy()
    assert [s.logprob for s in found.scores] == pytest.approx([row[t] for row, t in zip(right, tokens[1:], strict=False)], abs=1e-4)
    assert [s.alternatives[0].token for s in found.scores] == [int(row.argmax()) for row in right[:-1]]
    with torch.no_grad():
        total = built.model(torch.tensor([tokens])).last_hidden_state[0].double().sum(0).numpy()
    assert np.allclose(np.frombuffer(found.total, "<f8"), total, atol=1e-3)
