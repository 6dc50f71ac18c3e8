"""What is said of a prompt equals what transformers says of it, however it was cut, split and interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from shoal.config import Precision
from shoal.models.weights import GgufWeights, Weights
from shoal.pipeline.driver import Driver
from shoal.request import Request, RequestId, SamplingParams, Score, TokenChunk
from tests.support import mixtures, oracle
from tests.support.pipeline import pipeline
from tests.support.prompts import prompts

pytestmark = [pytest.mark.real, pytest.mark.slow]

ALTERNATIVES = 5
PROMPTS = prompts(3, (1, 2, 33, 100))
GREEDY = SamplingParams(temperature=0)


class Case(NamedTuple):
    """A model, how its rows are multiplied, and prompts of its vocabulary."""

    weights: Weights
    precision: Precision
    prompts: list[list[int]]


def made(weights: Weights, precision: Precision = Precision.FP32) -> Case:
    return Case(weights, precision, [[token % weights.spec.vocabulary for token in prompt] for prompt in PROMPTS])


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> mixtures.Maker:
    return mixtures.Maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=["dense", *mixtures.MODELS])
def both(request: pytest.FixtureRequest, smollm2_weights: GgufWeights, maker: mixtures.Maker) -> tuple[Case, Any]:
    """A model in float32, here and in transformers."""
    if request.param == "dense":
        return made(smollm2_weights), oracle.oracle(smollm2_weights)
    return made(*maker(request.param, Precision.FP32)), maker.built(request.param)


def play(case: Case, scene: Callable[[Driver], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(300), pipeline(case.weights, precision=case.precision, **settings) as driver:
            return await scene(driver)

    return asyncio.run(run())


async def heard(driver: Driver, request: Request) -> list[TokenChunk]:
    return [chunk async for chunk in driver.submit(request)]


def scored(name: str, prompt: list[int], tokens: int = 0) -> Request:
    return Request(RequestId(name), prompt, tokens, GREEDY, prompt_logprobs=ALTERNATIVES)


def embedded(name: str, prompt: list[int]) -> Request:
    return Request(RequestId(name), prompt, 0, embed=True)


def scores(chunks: list[TokenChunk]) -> list[Score]:
    return [score for chunk in chunks for score in chunk.scores]


def embedding(chunks: list[TokenChunk]) -> np.ndarray:
    (found,) = [chunk.embedding for chunk in chunks if chunk.embedding]
    return np.frombuffer(found, "<f4")


def assert_scored(model: Any, prompt: list[int], found: list[Score]) -> None:
    assert [score.token for score in found] == prompt
    assert (found[0].logprob, found[0].alternatives) == (None, ())
    right = torch.log_softmax(torch.from_numpy(oracle.logits(model, prompt)).double(), -1).numpy()
    for row, score in zip(right, found[1:], strict=False):
        assert score.logprob == pytest.approx(row[score.token], abs=1e-3)
        assert [a.logprob for a in score.alternatives] == pytest.approx(np.sort(row)[::-1][:ALTERNATIVES], abs=1e-3)
        assert [row[a.token] for a in score.alternatives] == pytest.approx([a.logprob for a in score.alternatives], abs=1e-3)


@torch.no_grad()
def pooled(model: Any, prompt: list[int]) -> np.ndarray:
    return model.model(torch.tensor([prompt])).last_hidden_state[0].double().mean(0).numpy()


def assert_embedded(model: Any, prompt: list[int], found: np.ndarray) -> None:
    right = pooled(model, prompt)
    assert np.linalg.norm(found - right) < 1e-3 * np.linalg.norm(right)


@pytest.mark.parametrize("stages", [1, 2])
def test_prompts_are_scored_and_embedded_as_by_transformers(both: tuple[Case, Any], stages: int) -> None:
    case, model = both

    async def together(driver: Driver) -> list[list[TokenChunk]]:
        asked = [scored(f"s{i}", p, i) for i, p in enumerate(case.prompts)] + [embedded(f"e{i}", p) for i, p in enumerate(case.prompts)]
        return await asyncio.gather(*(heard(driver, request) for request in asked))

    answers = play(case, together, stages=stages, step_tokens=64)  # the last prompt takes several steps
    for prompt, answer in zip(case.prompts, answers[: len(case.prompts)], strict=True):
        assert_scored(model, prompt, scores(answer))
    for prompt, answer in zip(case.prompts, answers[len(case.prompts) :], strict=True):
        assert_embedded(model, prompt, embedding(answer))
    for tokens, (prompt, answer) in enumerate(zip(case.prompts, answers[: len(case.prompts)], strict=True)):
        said = [chunk.token for chunk in answer if chunk.token is not None]
        assert said == oracle.greedy(model, prompt, tokens)
        assert all(chunk.scores for chunk in answer[: -max(tokens, 1)]), "scores come before what is drawn"


@pytest.mark.parametrize("ask", [scored, embedded])
def test_who_is_set_back_goes_on_where_it_was(both: tuple[Case, Any], ask: Callable[..., Request]) -> None:
    case, model = both
    prompt = case.prompts[-1]

    async def crowded(driver: Driver) -> list[TokenChunk]:
        older = Request(RequestId("older"), [token % 97 for token in prompts(5, (30,))[0]], 40, GREEDY)
        _, answer = await asyncio.gather(heard(driver, older), heard(driver, ask("younger", prompt)))
        assert driver.scheduler.counters.preemptions
        return answer

    answer = play(case, crowded, blocks=5, step_tokens=17)
    if ask is scored:
        assert_scored(model, prompt, scores(answer))
    else:
        assert_embedded(model, prompt, embedding(answer))


@pytest.mark.parametrize("mixture", [pytest.param(None, id="dense"), *mixtures.EVERY])
def test_neither_scores_nor_embeddings_depend_on_how_a_prompt_was_cut_or_split(
    mixture: tuple[str, Precision] | None, smollm2_weights: GgufWeights, maker: mixtures.Maker
) -> None:
    case = made(smollm2_weights) if mixture is None else made(*maker(*mixture))

    async def one(driver: Driver) -> tuple[list[Score], bytes]:
        prompt = case.prompts[-1]
        return scores(await heard(driver, scored("a", prompt))), embedding(await heard(driver, embedded("b", prompt))).tobytes()

    assert play(case, one, stages=3, step_tokens=40, threads=2) == play(case, one)


def test_a_prompt_that_others_have_computed_is_scored_all_the_same(both: tuple[Case, Any]) -> None:
    case, model = both
    prompt = case.prompts[-1]

    async def twice(driver: Driver) -> tuple[list[Score], int]:
        await heard(driver, Request(RequestId("first"), prompt, 1, GREEDY))
        found = scores(await heard(driver, scored("second", prompt, 2)))
        assert driver.scheduler.counters.cached_tokens == 0
        await heard(driver, Request(RequestId("third"), prompt, 1, GREEDY))
        return found, driver.scheduler.counters.cached_tokens

    found, cached = play(case, twice)
    assert_scored(model, prompt, found)
    assert cached == 96
