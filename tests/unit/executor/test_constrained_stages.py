"""A grammar holds over several stages, whatever befalls them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from random import Random
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.executor.sampler import Sampler
from shoal.executor.shard import Shard
from shoal.native import BLOCK_TOKENS
from shoal.request import FinishReason, Request, RequestId, SamplingParams
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import StepPlan, StepResult
from shoal.scheduler.scheduler import Scheduler
from shoal.testing import toy
from shoal.testing.foreteller import Foreteller

LETTERS = json.dumps({"grammars": [{"lark_grammar": "start: /(ab|[g-m]{3}k)+x/"}]})


class Line:
    """A scheduler before toy stages of one layer each, with real shards. The last stage may be lost."""

    def __init__(self, stages: int, blocks: int = 16, drafts: int = 0) -> None:
        self.scheduler = Scheduler(Limits(blocks, BLOCK_TOKENS, 4096, 8, 64, 99, stages, drafts=drafts))
        foreteller = Foreteller(Random(0))
        self.scheduler.speculator.drafter, self.answers = foreteller.drafter, foreteller.answers
        self.blocks, self._all = blocks, stages
        self._grammars = toy.grammars()
        self._shards = [self._fresh() for _ in range(stages)]
        self.said: dict[str, list[int]] = {}
        self.ends: dict[str, FinishReason] = {}
        self._enter([range(0)] * stages)

    def _fresh(self) -> Shard:
        return Shard(toy.make_runtime, grammars=self._grammars)

    def _enter(self, keep: list[range]) -> None:
        self._stages = []
        for at, (shard, kept) in enumerate(zip(self._shards, keep, strict=True)):
            shard.load(range(at, at + 1), toy.ToyWeights(self._all))
            self._stages.append(shard.enter(range(at, at + 1), kept, self.blocks))

    def lose_the_last(self) -> None:
        self._shards[-1] = self._fresh()
        self._enter([*(range(at, at + 1) for at in range(self._all - 1)), range(0)])
        self.scheduler.rewind()
        for plan in self.scheduler.refill([(0, self._all)], None, set()):
            self._run(plan)

    def _run(self, plan: StepPlan) -> StepResult:
        hidden, sampled = None, []
        for stage in self._stages:
            output = stage.run(plan, hidden)
            hidden, sampled = output.hidden, output.sampled
        return StepResult(plan.step, sampled, [])

    def step(self, late: bool = False) -> bool:
        """late: no mask came in time. Whether there was something to run."""
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is None:
            return False
        with mock.patch.object(Sampler, "sample", return_value=None) if late else nullcontext():
            result = self._run(plan)
        for chunk in self.scheduler.apply(result):
            if chunk.token is not None:
                self.said.setdefault(chunk.request, []).append(chunk.token)
            if chunk.finish is not None:
                self.ends[chunk.request] = chunk.finish
        self.scheduler.check()
        return True

    def drain(self) -> None:
        while self.step():
            pass
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        self._grammars.close()


def requests(count: int, tokens: int = 40) -> list[Request]:
    params = [SamplingParams(grammar=LETTERS if i % 2 == 0 else "", seed=i, temperature=(0.0, 1.5)[i % 3 > 0]) for i in range(count)]
    return [Request(RequestId(f"r{i}"), [5 + i, *range(9)] * (1 + 3 * i), tokens, p, 1, frozenset({toy.END})) for i, p in enumerate(params)]


def whole(line: Line, asked: list[Request]) -> tuple[dict[str, list[int]], dict[str, FinishReason]]:
    for request in asked:
        line.scheduler.add(request)
    line.drain()
    return line.said, line.ends


def test_a_grammar_holds_over_one_stage_and_over_several():
    asked = requests(4)
    for stages in (1, 2):
        said, ends = whole(Line(stages), asked)
        for request in asked:
            assert said[request.id] == toy.expected(request, stages)[0]
            text = "".join(chr(97 + token) for token in said[request.id])
            if request.sampling.grammar:
                assert text.endswith("x") == (ends[request.id] is FinishReason.STOP)


def test_the_cut_at_max_tokens_is_told():
    asked = requests(1, tokens=2)
    assert whole(Line(1), asked)[1] == {"r0": FinishReason.LENGTH}


def test_preemption_leaves_grammars_where_they_are():
    asked = requests(5, tokens=70)
    line = Line(2, blocks=8)
    said, _ = whole(line, asked)
    assert line.scheduler.counters.preemptions
    assert said == {request.id: toy.expected(request, 2)[0] for request in asked}


def test_drafts_under_grammars_are_verified_as_all_others():
    asked = requests(4)
    for stages in (1, 2):
        line = Line(stages, drafts=6)
        line.answers |= {request.id: toy.expected(request, stages) for request in asked}
        assert whole(line, asked)[0] == {request.id: line.answers[request.id][0] for request in asked}
        assert line.scheduler.counters.accepted_tokens > 10


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_whatever_is_lost_or_late_the_answer_is_the_same(seed: int):
    rng, asked = Random(seed), requests(4, tokens=24)
    line = Line(2, rng.choice((5, 16)), rng.choice((0, 5)))
    for request in asked:
        line.scheduler.add(request)
        line.answers[request.id] = toy.expected(request, 2)
    for _ in range(200):
        if rng.random() < 0.1:
            line.lose_the_last()
        if not line.step(late=rng.random() < 0.4):
            break
    line.drain()
    assert line.said == {request.id: toy.expected(request, 2)[0] for request in asked}
