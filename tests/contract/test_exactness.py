"""A token does not depend on how the model was split, what it was batched with, how its prompt was cut, or what was cached."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import jsonschema
import pytest

from shoal.config import KvType, Precision
from shoal.executor.constraint import Grammars
from shoal.models.weights import GgufWeights, Weights
from shoal.node.grammar_worker import vocabulary
from shoal.pipeline.driver import Driver
from shoal.request import Request, RequestId, SamplingParams
from shoal.testing.foreteller import Foreteller
from shoal.text import grammar
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import HERMES, ToolFunction
from tests.support import mixtures, upcycled
from tests.support.letters import calls
from tests.support.pipeline import Drawn, answered, asked, pipeline
from tests.support.prompts import prompts

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = prompts()
GREEDY = SamplingParams(temperature=0)
Said = list[list[Drawn]]


class Case(NamedTuple):
    """A model, how its rows are multiplied, and prompts of its vocabulary."""

    weights: Weights
    precision: Precision
    prompts: list[list[int]]


def made(weights: Weights, precision: Precision) -> Case:
    return Case(weights, precision, [[token % weights.spec.vocabulary for token in prompt] for prompt in PROMPTS])


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> mixtures.Maker:
    return mixtures.Maker(tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=[pytest.param(None, id="dense"), *mixtures.EVERY])
def case(request: pytest.FixtureRequest, smollm2_weights: GgufWeights, maker: mixtures.Maker) -> Case:
    return made(smollm2_weights, Precision.AUTO) if request.param is None else made(*maker(*request.param))


def play(case: Case, scene: Callable[[Driver], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(300), pipeline(case.weights, **{"precision": case.precision, **settings}) as driver:
            return await scene(driver)

    return asyncio.run(run())


async def one_by_one(driver: Driver, prompts: list[list[int]], tokens: int = 12) -> Said:
    return [(await answered(driver, asked(f"r{i}", p, tokens)))[0] for i, p in enumerate(prompts)]


async def together(driver: Driver, prompts: list[list[int]], tokens: int = 12) -> Said:
    answers = await asyncio.gather(*(answered(driver, asked(f"r{i}", p, tokens)) for i, p in enumerate(prompts)))
    return [choices[0] for choices in answers]


@pytest.fixture(scope="module")
def alone(case: Case) -> Said:
    return play(case, partial(one_by_one, prompts=case.prompts))


@pytest.mark.parametrize(("stages", "threads"), [(1, 1), (1, 2), (2, 1), (3, 2), (5, 1)])
def test_splits_and_batches(case: Case, alone: Said, stages: int, threads: int) -> None:
    assert play(case, partial(together, prompts=case.prompts), stages=stages, threads=threads) == alone


def test_fp32_splits_and_batches(smollm2_weights: GgufWeights) -> None:
    case, few = made(smollm2_weights, Precision.FP32), PROMPTS[1:4]  # a row costs several times as much
    exact = play(case, partial(one_by_one, prompts=few, tokens=6))
    assert play(case, partial(together, prompts=few, tokens=6), stages=2) == exact


@pytest.mark.parametrize(("step_tokens", "threads"), [(16, 1), (48, 2)])
def test_prompts_in_chunks(case: Case, alone: Said, step_tokens: int, threads: int) -> None:
    assert play(case, partial(together, prompts=case.prompts), step_tokens=step_tokens, stages=2, threads=threads) == alone


def test_prefix_cache_hits(case: Case, alone: Said) -> None:
    async def twice(driver: Driver) -> Said:
        await together(driver, case.prompts)
        before = driver.scheduler.counters.cached_tokens
        again = await asyncio.gather(*(answered(driver, asked(f"again{i}", p, 12)) for i, p in enumerate(case.prompts)))
        assert driver.scheduler.counters.cached_tokens > before
        return [choices[0] for choices in again]

    assert play(case, twice, stages=2) == alone


@pytest.mark.parametrize(("stages", "threads"), [(1, 2), (3, 1)])
def test_preemption(case: Case, alone: Said, stages: int, threads: int) -> None:
    async def crowded(driver: Driver) -> Said:
        same = await asyncio.gather(*(answered(driver, asked(f"r{i}", p, 40)) for i, p in enumerate(case.prompts)))
        assert driver.scheduler.counters.preemptions
        return [choices[0][:12] for choices in same]

    assert play(case, crowded, stages=stages, blocks=9, threads=threads) == alone


@pytest.mark.parametrize(("stages", "threads"), [(1, 2), (3, 1)])
def test_drafts(case: Case, alone: Said, stages: int, threads: int) -> None:
    """Rows of one sequence in one step, the wrong ones among them computed anew later."""

    async def drafting(driver: Driver) -> Said:
        driver.scheduler.slots.limits = replace(driver.scheduler.limits, drafts=4)
        foreteller, answers = Foreteller(Random(1)), [[token for token, *_ in said] for said in alone]
        driver.scheduler.speculator.drafter = foreteller.drafter
        foreteller.answers |= {RequestId(f"r{i}"): [answer] for i, answer in enumerate(answers)}
        said = await together(driver, case.prompts)
        counters = driver.scheduler.counters
        assert 10 < counters.accepted_tokens < counters.drafted_tokens
        return said

    assert play(case, drafting, stages=stages, threads=threads) == alone


def test_forks_draw_what_they_would_have_drawn_alone(case: Case) -> None:
    prompt = case.prompts[4]

    def drawing(seed: int) -> SamplingParams:
        return SamplingParams(temperature=1.0, seed=seed, logprobs=2)

    async def forked(driver: Driver) -> Said:
        return await answered(driver, asked("n", prompt, 10, n=3, sampling=drawing(5)))

    async def single(driver: Driver) -> Said:
        each = [asked(f"s{c}", prompt, 10, sampling=drawing(5 + c)) for c in range(3)]
        return [(await answered(driver, request))[0] for request in each]

    assert play(case, forked, stages=2) == play(case, single)


@pytest.mark.parametrize("kv_type", [KvType.Q8, KvType.Q4])
def test_rounded_keys_and_values(smollm2_weights: GgufWeights, kv_type: KvType) -> None:
    """In a batch, in chunks, over stages, and with too few blocks for all."""
    case = made(smollm2_weights, Precision.AUTO)
    exact = play(case, partial(one_by_one, prompts=case.prompts), kv_type=kv_type)
    everyone = partial(together, prompts=case.prompts)
    assert play(case, everyone, kv_type=kv_type, stages=3, threads=2, step_tokens=48) == exact
    assert play(case, everyone, kv_type=kv_type, stages=2, blocks=9) == exact


def test_trained_experts_that_differ(smollm2: Path) -> None:
    """Like `test_splits_and_batches`, with weights that lead to an answer."""
    case = made(GgufWeights(upcycled.mixtral(smollm2, "perturbed")), Precision.AUTO)
    exact = play(case, partial(one_by_one, prompts=PROMPTS[1:]))
    assert play(case, partial(together, prompts=PROMPTS[1:]), stages=3, threads=2) == exact


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
        answers.append(play(made(smollm2_weights, Precision.AUTO), mixed, stages=stages, grammars=grammars, **crowd))
        grammars.close()
    assert answers[0] == answers[1]
    for i, tokens in enumerate(answers[0]):
        text = tokenizer.decode(tokens)
        if i % 3 == 1:
            jsonschema.validate(json.loads(text), ADDRESS)
        elif i % 3 == 2:
            call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            jsonschema.validate(call["arguments"], ADDRESS)


def test_two_hundred_requests_with_cancels_and_a_small_pool(case: Case) -> None:
    """Every one ends with its right tokens or is cancelled; nothing hangs, no block is lost."""
    rng = random.Random(7)
    shapes = [(rng.randrange(1, 50), rng.randrange(1, 16), rng.random() < 0.25) for _ in range(40)]
    drawn = prompts(9, tuple(length for length, _, _ in shapes))
    asked_for = [[token % case.weights.spec.vocabulary for token in prompt] for prompt in drawn]

    async def calm(driver: Driver) -> Said:
        return [(await answered(driver, asked(f"c{i}", p, shapes[i][1], sampling=GREEDY)))[0] for i, p in enumerate(asked_for)]

    right = play(case, calm)

    async def storm(driver: Driver) -> None:
        async def client(i: int) -> None:
            at = i % len(shapes)
            stream, got = driver.submit(asked(f"s{i}", asked_for[at], shapes[at][1], sampling=GREEDY)), []
            async for chunk in stream:
                got.append((chunk.token, chunk.logprob, chunk.alternatives))
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

    play(case, storm, stages=2, blocks=14, slots=12)
