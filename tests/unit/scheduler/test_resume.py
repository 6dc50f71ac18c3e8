"""Requests that begin under one scheduler and end under another say what they would have said under one."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest
from shoal.executor.shard import Shard
from shoal.executor.stage import StageExecutor
from shoal.native import BLOCK_TOKENS
from shoal.pipeline.token_stream import TokenStream
from shoal.request import FinishReason, Request, RequestId, SamplingParams, TokenChunk
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.testing import toy

LAYERS = 2
CONTEXT = 96


def whole_stage(blocks: int) -> StageExecutor:
    shard = Shard(toy.make_runtime)
    shard.load(range(LAYERS), toy.ToyWeights(LAYERS))
    return shard.enter(range(LAYERS), range(0), blocks)


@dataclass
class Life:
    """A head from its start to its end; what is said is kept in the order in which it was drawn."""

    said: list[TokenChunk]
    blocks: int = 12
    slots: int = 8
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(Limits(self.blocks, BLOCK_TOKENS, CONTEXT, self.slots, 64, queue=4))
        self._stage = whole_stage(self.blocks)

    def take_up(self, requests: list[Request]) -> None:
        for request in requests:
            if request.examined:  # as RequestLog has it
                self.said[:] = [chunk for chunk in self.said if chunk.request != request.id or chunk.choice]
            stream = TokenStream(request, [chunk for chunk in self.said if chunk.request == request.id])
            if stream.left:
                self.scheduler.add(request, stream.left)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            plan = self.scheduler.schedule()
            if plan is None:
                return
            output = self._stage.run(plan, None)
            self.said += self.scheduler.apply(StepResult(plan.step, output.sampled, [], examined=list(output.examined)))
            self.scheduler.check()

    def finish(self) -> None:
        self.run(10_000)
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)


def of(said: list[TokenChunk], request: Request) -> list[list[int]]:
    mine = [chunk for chunk in said if chunk.request == request.id]
    assert sum(chunk.finish is not None for chunk in mine) == request.n
    return [[c.token for c in mine if c.choice == choice and c.token is not None] for choice in range(request.n)]


def assert_whole(said: list[TokenChunk], request: Request) -> None:
    assert of(said, request) == toy.expected(request, LAYERS)
    mine = [chunk for chunk in said if chunk.request == request.id and chunk.choice == 0]
    scores = [score for chunk in mine for score in chunk.scores]
    assert (scores, b"".join(chunk.embedding for chunk in mine)) == toy.examined(request, LAYERS)
    about_the_prompt = [bool(chunk.scores or chunk.embedding) for chunk in mine]
    assert about_the_prompt == sorted(about_the_prompt, reverse=True), "what is said of the prompt comes first"


def asked(
    name: str,
    prompt: int = 40,
    tokens: int = 12,
    n: int = 1,
    stops: frozenset[int] = frozenset(),
    scores: int | None = None,
    embed: bool = False,
    **sampling: float,
) -> Request:
    values = [(i * i + len(name)) % toy.VOCABULARY for i in range(prompt)]
    return Request(RequestId(name), values, tokens, SamplingParams(**sampling), n, stops, prompt_logprobs=scores, embed=embed)  # pyright: ignore[reportArgumentType]


SHAPES = {
    "greedy": asked("a", temperature=0),
    "drawn": asked("a", seed=7),
    "two blocks": asked("a", prompt=64, tokens=20, seed=7),
    "penalties": asked("a", seed=3, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.7),
    "choices": asked("a", n=3, seed=5),
    "choices with penalties": asked("a", n=2, seed=5, repetition_penalty=1.3, frequency_penalty=1),
    "a stop token": asked("a", tokens=40, n=2, seed=1, stops=frozenset({3, 4})),
    "scores": asked("a", prompt=70, tokens=5, seed=7, scores=2),
    "scores of choices": asked("a", prompt=64, tokens=9, n=3, seed=5, scores=0),
    "scores alone": asked("a", prompt=70, tokens=0, scores=1),
    "an embedding": asked("a", prompt=70, embed=True),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_said_and_resumed_are_the_whole_wherever_it_was_cut(shape: str):
    request = SHAPES[shape]
    for steps in range(60):
        first = Life([])
        first.scheduler.add(request)
        first.run(steps)
        second = Life(first.said)
        second.take_up([request])
        second.finish()
        assert_whole(second.said, request)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_one_scheduler_has_generated_is_what_another_needs(shape: str):
    """None where the prompt is being examined: what was said of it is said once."""
    request = SHAPES[shape]
    moved = 0
    for steps in range(40):
        first = Life([])
        first.scheduler.add(request)
        first.run(steps)
        first.scheduler.rewind()
        told = any(chunk.scores or chunk.embedding for chunk in first.said)
        if (generated := first.scheduler.generated(request.id)) is None:
            assert told or request.embed or any(chunk.finish for chunk in first.said)
            continue
        assert not told or any(chunk.finish for chunk in first.said), "all of it was said before"
        moved += 1
        second = Life(list(first.said))
        second.scheduler.add(request, generated)
        second.finish()
        assert_whole(second.said, request)
    assert moved
    assert Life([]).scheduler.generated(RequestId("unknown")) is None


def test_what_ended_is_not_run_again():
    life = Life([])
    life.scheduler.add(request := asked("a", n=2, tokens=3))
    life.finish()
    again = Life(list(life.said))
    again.take_up([request])
    assert again.scheduler.schedule() is None


def test_one_choice_that_is_left_goes_on_alone():
    request = asked("a", n=3, seed=5)
    life = Life([])
    life.scheduler.add(request)
    life.run(3)
    ends = [TokenChunk(request.id, choice, None, finish=FinishReason.STOP) for choice in (0, 2)]
    second = Life([*life.said, *ends])
    second.take_up([request])
    assert second.scheduler.waiting == 1
    second.finish()
    assert of(second.said, request)[1] == toy.expected(request, LAYERS)[1]


def test_requests_that_were_let_in_once_are_not_refused_for_the_queue():
    life = Life([])
    life.take_up([asked(name, n=2) for name in "abcdef"])
    assert life.scheduler.waiting == 12


def test_a_request_that_no_longer_fits_is_refused():
    life = Life([], blocks=2)
    with pytest.raises(InvalidRequest):
        life.take_up([asked("a", prompt=60, tokens=30)])


@settings(max_examples=60)
@given(st.data())
def test_many_requests_over_many_heads_with_too_little_memory(data: st.DataObject):
    shapes = data.draw(st.lists(st.sampled_from(list(SHAPES.values())), min_size=1, max_size=5))
    requests = [msgspec.structs.replace(shape, id=RequestId(f"r{i}")) for i, shape in enumerate(shapes)]
    said: list[TokenChunk] = []
    for steps in [*data.draw(st.lists(st.integers(0, 30), max_size=4)), 10_000]:
        life = Life(said, blocks=data.draw(st.integers(4, 12)), slots=data.draw(st.integers(1, 6)))
        life.take_up(requests)
        life.run(steps)
    for request in requests:
        assert_whole(said, request)
