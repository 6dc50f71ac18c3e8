"""A token does not depend on how the model was split, what it was batched with, how its prompt was cut, or what was cached."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shoal.config import Precision
from shoal.executor.constraint import Grammars
from shoal.models.weights import GgufWeights
from shoal.node.grammar_worker import vocabulary
from shoal.pipeline.driver import Driver
from shoal.request import Request, RequestId, SamplingParams
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import HERMES, ToolFunction
from tests.support.letters import calls
from tests.support.pipeline import answered, asked, pipeline
from tests.support.prompts import prompts

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = prompts()


def play(weights: GgufWeights, scene: Callable[[Driver], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(300), pipeline(weights, **settings) as driver:
            return await scene(driver)

    return asyncio.run(run())


async def one_by_one(driver: Driver, prompts: list[list[int]] = PROMPTS, tokens: int = 12) -> list[list[int]]:
    return [(await answered(driver, asked(f"r{i}", p, tokens)))[0] for i, p in enumerate(prompts)]


async def together(driver: Driver, prompts: list[list[int]] = PROMPTS, tokens: int = 12) -> list[list[int]]:
    answers = await asyncio.gather(*(answered(driver, asked(f"r{i}", p, tokens)) for i, p in enumerate(prompts)))
    return [choices[0] for choices in answers]


@pytest.fixture(scope="module")
def alone(smollm2_weights: GgufWeights) -> list[list[int]]:
    return play(smollm2_weights, one_by_one)


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_splits_and_batches(smollm2_weights: GgufWeights, alone: list[list[int]], stages: int) -> None:
    assert play(smollm2_weights, together, stages=stages) == alone


def test_fp32_splits_and_batches(smollm2_weights: GgufWeights) -> None:
    few = PROMPTS[1:4]  # a row costs several times as much
    exact = play(smollm2_weights, partial(one_by_one, prompts=few, tokens=6), precision=Precision.FP32)
    assert play(smollm2_weights, partial(together, prompts=few, tokens=6), precision=Precision.FP32, stages=2) == exact


@pytest.mark.parametrize("step_tokens", [16, 48])
def test_prompts_in_chunks(smollm2_weights: GgufWeights, alone: list[list[int]], step_tokens: int) -> None:
    assert play(smollm2_weights, together, step_tokens=step_tokens, stages=2) == alone


def test_prefix_cache_hits(smollm2_weights: GgufWeights, alone: list[list[int]]) -> None:
    async def twice(driver: Driver) -> list[list[int]]:
        await together(driver)
        before = driver.scheduler.counters.cached_tokens
        again = await asyncio.gather(*(answered(driver, asked(f"again{i}", p, 12)) for i, p in enumerate(PROMPTS)))
        assert driver.scheduler.counters.cached_tokens > before
        return [choices[0] for choices in again]

    assert play(smollm2_weights, twice, stages=2) == alone


@pytest.mark.parametrize("stages", [1, 3])
def test_preemption(smollm2_weights: GgufWeights, alone: list[list[int]], stages: int) -> None:
    async def crowded(driver: Driver) -> list[list[int]]:
        same = await asyncio.gather(*(answered(driver, asked(f"r{i}", p, 40)) for i, p in enumerate(PROMPTS)))
        assert driver.scheduler.counters.preemptions
        return [choices[0][:12] for choices in same]

    assert play(smollm2_weights, crowded, stages=stages, blocks=9) == alone


def test_forks_draw_what_they_would_have_drawn_alone(smollm2_weights: GgufWeights) -> None:
    prompt = PROMPTS[4]

    async def forked(driver: Driver) -> list[list[int]]:
        return await answered(driver, asked("n", prompt, 10, n=3, sampling=SamplingParams(temperature=1.0, seed=5)))

    async def single(driver: Driver) -> list[list[int]]:
        each = [asked(f"s{c}", prompt, 10, sampling=SamplingParams(temperature=1.0, seed=5 + c)) for c in range(3)]
        return [(await answered(driver, request))[0] for request in each]

    assert play(smollm2_weights, forked, stages=2) == play(smollm2_weights, single)


ADDRESS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["home", "work"]},
        "codes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 3},
    },
    "required": ["city", "kind", "codes"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("crowd", [{}, {"blocks": 9}], ids=["room for all", "preemption"])
def test_answers_held_to_a_grammar(smollm2: Path, smollm2_weights: GgufWeights, crowd: dict[str, int]) -> None:
    """Some among others that are free: valid, ended where they are whole, and the same over one stage and two."""
    tokenizer = Tokenizer.open(smollm2, smollm2_weights.file.meta)
    schema, called = grammar.json_schema(ADDRESS), calls(HERMES, [ToolFunction("address", ADDRESS)], "required", parallel=False)

    async def mixed(driver: Driver) -> list[list[int]]:
        async def said(i: int, prompt: list[int]) -> list[int]:
            held = SamplingParams(temperature=0.0 if i % 2 else 1.0, seed=i, grammar=("", schema, called)[i % 3])
            stream = driver.submit(Request(RequestId(f"g{i}"), prompt, 150 if i % 3 else 40, held, 1, tokenizer.stop_tokens))
            return [chunk.token for chunk in [c async for c in stream] if chunk.token is not None]

        out = await asyncio.gather(*(said(i, prompt) for i, prompt in enumerate(PROMPTS)))
        assert bool(driver.scheduler.counters.preemptions) == bool(crowd)
        return out

    answers: list[list[list[int]]] = []
    for stages in (1, 2):
        grammars = Grammars(lambda: vocabulary(smollm2))
        answers.append(play(smollm2_weights, mixed, stages=stages, grammars=grammars, **crowd))
        grammars.close()
    assert answers[0] == answers[1]
    for i, tokens in enumerate(answers[0]):
        text = tokenizer.decode(tokens)
        if i % 3 == 1:
            jsonschema.validate(json.loads(text), ADDRESS)
        elif i % 3 == 2:
            call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            jsonschema.validate(call["arguments"], ADDRESS)


def test_two_hundred_requests_with_cancels_and_a_small_pool(smollm2_weights: GgufWeights) -> None:
    """Every one ends with its right tokens or is cancelled; nothing hangs, no block is lost."""
    rng = random.Random(7)
    shapes = [(rng.randrange(1, 50), rng.randrange(1, 16), rng.random() < 0.25) for _ in range(40)]
    asked_for = prompts(9, tuple(length for length, _, _ in shapes))

    async def calm(driver: Driver) -> list[list[int]]:
        return [(await answered(driver, asked(f"c{i}", p, shapes[i][1])))[0] for i, p in enumerate(asked_for)]

    right = play(smollm2_weights, calm)

    async def storm(driver: Driver) -> None:
        async def client(i: int) -> None:
            at = i % len(shapes)
            stream, got = driver.submit(asked(f"s{i}", asked_for[at], shapes[at][1])), []
            async for chunk in stream:
                got.append(chunk.token)
                if shapes[at][2] and len(got) > i % 5:
                    stream.close()
                    break
            assert got == right[at][: len(got)]
            assert shapes[at][2] or got == right[at]

        await asyncio.gather(*(client(i) for i in range(200)))
        while driver.scheduler.in_flight:  # noqa: ASYNC110 - the last steps come in by themselves
            await asyncio.sleep(0)
        assert driver.scheduler.counters.preemptions
        assert (driver.scheduler.running, driver.scheduler.waiting, driver.scheduler.pool.used) == (0, 0, 0)

    play(smollm2_weights, storm, stages=2, blocks=14, slots=12)
