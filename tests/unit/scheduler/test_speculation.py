"""Steps that verify drafts: fewer of them, and the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.request import Request
from shoal.scheduler.cost import StageCost, StepCost
from shoal.scheduler.drafting.draft import Draft
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import Sampled, StepPlan, StepResult
from tests.support.toy_stage import STOP, Toy, assert_right, expected, limits, request, serve


class Told:
    """Drafts of exactly these tokens, as the answer's."""

    def __init__(self, answer: list[int], begin: int) -> None:
        self._answer, self._begin = answer, begin

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        at = len(tokens) - self._begin
        return Draft(self._answer[at : at + most], 20)


def toy_that_knows(r: Request, bounds: Limits, wrong_from: int = 99) -> Toy:
    """Every draft is right, up to a token of the answer."""
    toy = Toy(bounds)
    answers = [expected(r, choice)[0] for choice in range(r.n)]
    toy.scheduler.speculator.drafter = lambda s: Told(
        [t if i < wrong_from else t + 23 for i, t in enumerate(answers[s.choice])], s.prompt_length
    )
    return toy


def rows(toy: Toy) -> list[tuple[int, int]]:
    """Of each chunk: its position, and how many of its tokens are drafts."""
    return [(chunk.position, chunk.drafts) for plan in toy.history for chunk in plan.chunks]


def test_right_drafts_save_steps():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 12), limits(drafts=4))
    serve(toy, r)
    assert rows(toy) == [(0, 0), (3, 4), (8, 4), (13, 0)]
    counters = toy.scheduler.counters
    assert (counters.drafted_tokens, counters.accepted_tokens, counters.generated_tokens) == (8, 8, 12)


def test_wrong_drafts_save_none_and_change_nothing():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 6), limits(drafts=4), wrong_from=0)
    serve(toy, r)
    assert len(rows(toy)) == 6
    assert toy.scheduler.counters.accepted_tokens == 0 < toy.scheduler.counters.drafted_tokens


def test_without_limits_for_them_there_are_none():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 6), limits())
    serve(toy, r)
    assert {drafts for _, drafts in rows(toy)} == {0}


def test_nothing_is_drafted_that_could_not_be_said():
    """The last draft leaves room for the token that is sampled after it, and nothing follows an end of text."""
    toy = toy_that_knows(r := request("a", [1, 2], 4), limits(drafts=9))
    serve(toy, r)
    assert rows(toy) == [(0, 0), (2, 2)]
    asked = next(r for seed in range(99) if 3 < len(expected(r := request("a", [1, 2], 30, seed=seed, stops=frozenset({STOP})), 0)[0]) < 9)
    toy = Toy(limits(drafts=20))
    toy.scheduler.speculator.drafter = lambda s: Told([*expected(asked, 0)[0], STOP, 1, 1, 1], s.prompt_length)
    serve(toy, asked)
    assert rows(toy)[1] == (2, len(expected(asked, 0)[0]) - 1)
    assert len(rows(toy)) == 2


def test_drafts_wait_for_prompts():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 20), limits(drafts=4, step_tokens=8))
    toy.add(r)
    toy.step()
    toy.add(other := request("b", range(1, 20), 1))
    for _ in range(3):
        plan = toy.step()
        assert plan is not None and not any(chunk.drafts for chunk in plan.chunks)
    assert toy.step().chunks[0].drafts == 4  # pyright: ignore[reportOptionalMemberAccess]
    toy.drain()
    assert_right(toy, r, other)


def test_a_draft_takes_no_row_that_a_step_has_not():
    toy = toy_that_knows(r := request("a", [1, 2], 14, n=3), limits(blocks=60, drafts=9, step_tokens=6))
    serve(toy, r)
    assert max(plan.rows for plan in toy.history) == 6


def test_a_draft_is_cut_where_there_are_no_blocks_and_preempts_nobody():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 12, n=2), limits(blocks=4, block_tokens=8, drafts=8))
    serve(toy, r)
    assert toy.scheduler.counters.preemptions == 0
    assert any(drafts for _, drafts in rows(toy))


def test_blocks_of_accepted_drafts_are_found_by_later_prompts():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 14), limits(drafts=16))
    serve(toy, r)
    serve(toy, request("b", [1, 2, 3, *expected(r, 0)[0]], 1))
    assert toy.scheduler.counters.cached_tokens == 16  # its seventeenth has to run


def test_what_a_draft_computed_is_not_found_if_it_was_wrong():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 14), limits(drafts=16), wrong_from=2)
    serve(toy, r)
    wrong = [token + 23 for token in expected(r, 0)[0][2:]]
    serve(toy, request("b", [1, 2, 3, *expected(r, 0)[0][:2], *wrong], 3))
    assert toy.scheduler.counters.cached_tokens == 4


def answer(toy: Toy, plan: StepPlan, *tokens: int) -> None:
    toy.scheduler.apply(StepResult(plan.step, [Sampled(plan.chunks[0].sequence, token) for token in tokens], []))


@pytest.mark.parametrize("extra", ["after a wrong draft", "after all", "without drafts"])
def test_a_result_that_goes_on_where_it_may_not_breaks_the_protocol(extra: str):
    toy = toy_that_knows(r := request("a", [1, 2, 3], 12), limits(drafts=2))
    toy.add(r)
    if extra != "without drafts":
        toy.step()
    plan = toy.send()
    assert plan is not None
    right = expected(r, 0)[0]
    tokens = {"after a wrong draft": (right[1] + 23, 5), "after all": (*right[1:4], 5), "without drafts": (*right[:1], 5)}[extra]
    with pytest.raises(RemoteProtocolError, match="goes on"):
        answer(toy, plan, *tokens)
    toy.run()
    toy.take()  # nothing of it was applied
    toy.drain()
    assert_right(toy, r)


def test_rows_of_wrong_drafts_do_not_count_as_degraded():
    toy = toy_that_knows(r := request("a", [1, 2, 3], 12), limits(drafts=4), wrong_from=2)
    toy.add(r)
    toy.step()
    toy.send()
    toy.run()
    toy.results[-1] = msgspec.structs.replace(toy.results[-1], degraded={0: 5})
    toy.take()
    assert toy.scheduler.counters.degraded_tokens == 2  # the first token's row, and that of the draft that was right


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 16), st.integers(1, 3)), min_size=1, max_size=5),
    st.integers(10, 40),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_tokens_are_the_same_with_and_without(shapes: list[tuple[int, int, int]], blocks: int, depth: int, drafts: int):
    asked = [request(f"r{i}", range(1, size + 1), tokens, n=n, seed=i) for i, (size, tokens, n) in enumerate(shapes)]
    said: list[dict[tuple[str, int], list[int]]] = []
    for bounds in (limits(blocks=blocks, depth=depth), limits(blocks=blocks, depth=depth, drafts=drafts)):
        toy = Toy(bounds)
        serve(toy, *asked)
        said.append(toy.said)
    assert said[0] == said[1]


def cost(step: float, row: float, ways: float = 0.0) -> StepCost:
    return StepCost([StageCost(step, row, 0.0, 0.0)], StageCost(ways, 0.0, 0.0, 0.0))


def drafted(cost: StepCost, streams: int) -> int:
    """Drafts of a step with so many streams."""
    toy = Toy(replace(limits(blocks=400, drafts=4, step_tokens=200), slots=32))
    for i in range(streams):
        toy.add(request(f"r{i}", [1 + i % 20, 2, 3], 12, seed=i))
    toy.step()
    toy.scheduler.cost = cost
    plan = toy.send()
    assert plan is not None and len(plan.chunks) == streams
    return sum(chunk.drafts for chunk in plan.chunks)


def test_drafts_end_by_themselves_where_many_streams_make_rows_dear():
    """A step of 10 ms and a row of 2 ms: two streams share a step as one, and eight have filled it."""
    assert drafted(cost(0.01, 0.002), 1) > 0
    assert drafted(cost(0.01, 0.002), 16) == 0


def test_rows_that_cost_nothing_are_filled_at_any_load():
    assert drafted(cost(0.01, 0.0), 16) > 16


def test_a_step_on_a_long_way_has_longer_drafts():
    assert drafted(cost(0.004, 0.004), 1) < drafted(cost(0.004, 0.004, ways=0.04), 1)
