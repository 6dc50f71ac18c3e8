"""What is asked about a prompt itself: every token answers once, in order, before anything is drawn, whatever happens on the way."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.errors import InvalidRequest, RemoteProtocolError
from shoal.request import FinishReason, Request
from shoal.scheduler.plan import PromptOutputs, PromptQuery, StepPlan, StepResult
from tests.support.toy_layers import Layered
from tests.support.toy_stage import Toy, expected, expected_embedding, expected_scores, limits, request


def assert_right(toy: Toy, *requests: Request, layers: int = 1) -> None:
    for r in requests:
        assert toy.scores[r.id] == expected_scores(r, layers)
        assert toy.embeddings[r.id] == expected_embedding(r, layers)
        for choice in range(r.n):
            assert (toy.said[r.id, choice], toy.ends.get((r.id, choice))) == expected(r, choice, layers)


def serve(toy: Toy, *requests: Request) -> None:
    for r in requests:
        toy.add(r)
    toy.drain()
    assert_right(toy, *requests)


def asked(plans: list[StepPlan]) -> list[int]:
    """All tokens whose scores were asked for, in the order of the steps."""
    chunks = [chunk for plan in plans for chunk in plan.chunks if chunk.asked is not None]
    return [token for chunk in chunks if chunk.asked is not None for token in chunk.asked.followers]


# What is refused


@pytest.mark.parametrize("wanted", [{"scores": 0}, {"embed": True}])
def test_a_prompt_of_which_nothing_is_drawn_may_be_as_long_as_a_sequence(wanted: dict[str, Any]):
    toy = Toy(limits(blocks=4))
    serve(toy, request("a", range(1, 17), 0, **wanted), request("b", [1, 2], 0, **wanted))
    with pytest.raises(InvalidRequest, match="at most 16 fit"):
        toy.add(request("c", range(1, 18), 0, **wanted))


@pytest.mark.parametrize(
    ("r", "param"),
    [
        (request("a", [1], 0), "max_tokens"),
        (request("a", [1], -1, scores=1), "max_tokens"),
        (request("a", [], 0, embed=True), "prompt"),
        (request("a", [1] * 64, 1, scores=1), "prompt"),
        (request("a", [1] * 60, 5, scores=1), "max_tokens"),
        (request("a", [1], 1, scores=21), "prompt_logprobs"),
        (request("a", [1], 1, scores=-1), "prompt_logprobs"),
    ],
)
def test_what_can_never_run_is_refused(r: Request, param: str):
    with pytest.raises(InvalidRequest) as refused:
        Toy(limits()).add(r)
    assert refused.value.param == param


# Scores


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 40])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_every_token_is_scored_once_and_before_anything_is_drawn(length: int, tokens: int):
    toy, r = Toy(limits()), request("a", range(1, length + 1), tokens, scores=2)
    serve(toy, r)
    assert asked(toy.history) == r.prompt[1:]


def test_a_chunk_brings_the_tokens_that_follow_its_rows():
    toy = Toy(limits(step_tokens=4))
    toy.add(request("a", range(1, 7), 3, scores=2))
    first, second, third = toy.send(), toy.send(), toy.send()
    assert first is not None and second is not None
    assert first.chunks[0].asked == PromptQuery([2, 3, 4, 5], 2, False)
    assert second.chunks[0].asked == PromptQuery([6], 2, False)  # nothing follows the prompt's last token
    assert third is None


def test_what_is_drawn_later_asks_nothing():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2, 3], 6, scores=2), request("b", [4, 5], 6))
    assert all(chunk.asked is None for plan in toy.history[1:] for chunk in plan.chunks)
    assert {chunk.sequence: chunk.asked is None for chunk in toy.history[0].chunks} == {0: False, 1: True}


def test_nothing_is_opened_or_left_of_what_draws_nothing():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2, 3], 0, scores=0), request("b", [1, 2, 3], 9, embed=True))
    assert not any(plan.opened or chunk.sample for plan in toy.history for chunk in plan.chunks)
    assert len(toy.stage) == 0
    assert toy.ends == {("a", 0): FinishReason.LENGTH, ("b", 0): FinishReason.STOP}
    assert toy.scheduler.counters.generated_tokens == 0


def test_scores_come_once_for_all_choices():
    toy = Toy(limits())
    serve(toy, request("a", range(1, 11), 4, n=3, scores=1), request("b", range(1, 11), 0, n=2, scores=1))
    assert asked(toy.history) == [*range(2, 11)] * 2


# Blocks that are found


@pytest.mark.parametrize("wanted", [{"scores": 0}, {"embed": True}])
def test_what_others_have_computed_is_computed_again(wanted: dict[str, Any]):
    toy = Toy(limits())
    serve(toy, request("a", range(1, 12), 1))
    rows = sum(plan.rows for plan in toy.history)
    serve(toy, request("b", range(1, 12), 0, **wanted))
    assert sum(plan.rows for plan in toy.history) == rows + 11
    assert toy.scheduler.counters.cached_tokens == 0


@pytest.mark.parametrize("wanted", [{"scores": 0}, {"embed": True}])
def test_others_find_what_was_examined(wanted: dict[str, Any]):
    toy = Toy(limits())
    serve(toy, request("a", range(1, 12), 0, **wanted))
    serve(toy, request("b", range(1, 12), 1))
    assert toy.scheduler.counters.cached_tokens == 8


# Too little memory


def crowded(r: Request, until: int) -> Toy:
    """`r` gives way when `until` of its tokens are examined."""
    toy = Toy(limits(blocks=12, step_tokens=4))
    toy.add(r)
    (sequence,) = toy.scheduler._sequences.values()
    while sequence.examined < until:
        toy.step()
    toy.scheduler.slots.preempt(sequence)
    toy.scheduler.check()
    return toy


@pytest.mark.parametrize("until", [1, 4, 8, 12])
@pytest.mark.parametrize("wanted", [{"scores": 1}, {"embed": True}, {"scores": 1, "embed": True}])
def test_who_gives_way_does_not_answer_twice(until: int, wanted: dict[str, Any]):
    r = request("a", range(1, 14), 3, **wanted)
    toy = crowded(r, until)
    toy.drain()
    assert_right(toy, r)
    assert asked(toy.history) == (r.prompt[1:] if "scores" in wanted else [])


def test_what_was_examined_before_is_found():
    toy = crowded(r := request("a", range(1, 14), 3, scores=1), 8)
    before = len(toy.history)
    toy.drain()
    assert toy.history[before].chunks[0].position == 8
    assert_right(toy, r)


@pytest.mark.parametrize("wanted", [{"scores": 1}, {"embed": True}])
def test_rows_that_have_answered_share_no_chunk_with_those_that_have_not(wanted: dict[str, Any]):
    toy = Toy(limits(blocks=12, step_tokens=6))
    toy.add(r := request("a", range(1, 14), 3, **wanted))
    toy.step()
    (sequence,) = toy.scheduler._sequences.values()
    toy.scheduler.slots.preempt(sequence)
    toy.scheduler.pool.forget_idle()
    toy.drain()
    assert_right(toy, r)
    assert [(c.position, len(c.tokens), c.asked is None) for plan in toy.history[:3] for c in plan.chunks] == [
        (0, 6, False),
        (0, 6, True),
        (6, 6, False),
    ]


@pytest.mark.parametrize("wanted", [{"scores": 1}, {"embed": True}])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_an_earlier_life_asked_counts(wanted: dict[str, Any], steps: int):
    """Its chunks were on their way when the sequence gave way; with the last one there is a draw, which counts as well."""
    toy = Toy(limits(step_tokens=4, depth=3))
    toy.add(r := request("a", range(1, 11), 2, **wanted))
    for _ in range(steps):
        toy.send()
    (sequence,) = toy.scheduler._sequences.values()
    toy.scheduler.slots.preempt(sequence)
    toy.drain()
    assert_right(toy, r)
    assert sum(len(c.tokens) for plan in toy.history for c in plan.chunks if c.asked is not None) == 10


# Losses


@pytest.mark.parametrize("wanted", [{"scores": 2}, {"embed": True}])
@pytest.mark.parametrize("spans", [[], [(0, 1)], [(2, 3)], [(0, 3)]])
def test_what_was_on_its_way_is_asked_again_on_the_next_route(wanted: dict[str, Any], spans: list[tuple[int, int]]):
    toy = Layered(limits(step_tokens=4, depth=2))
    toy.add(r := request("a", range(1, 15), 3, **wanted))
    toy.step_all()
    for _ in range(3):
        toy.fill()
        toy.lose(spans)
        toy.recover(spans)
        toy.step_all()
    toy.drain()
    assert_right(toy, r, layers=3)


@pytest.mark.parametrize("wanted", [{"scores": 1}, {"embed": True}])
def test_blocks_of_others_do_not_stand_for_answers_that_were_lost(wanted: dict[str, Any]):
    """What was asked in an earlier life is on its way when the sequence enters again, and is lost then."""
    toy = Layered(limits(blocks=32, step_tokens=8, depth=2))
    toy.add(request("other", range(1, 15), 6))
    toy.step_all()
    toy.step_all()
    toy.add(r := request("a", range(1, 15), 0, **wanted))
    (sequence,) = [s for s in toy.scheduler._sequences.values() if s.answers]
    while sequence.asked < 14:
        toy.step_all()
    assert sequence.examined < 12
    toy.scheduler.slots.preempt(sequence)
    toy.fill()
    assert sequence in toy.scheduler.slots.running
    toy.lose([])
    toy.drain()
    assert_right(toy, r, layers=3)


def test_another_pool_takes_back_nothing_that_was_said():
    toy = Layered(limits(step_tokens=4))
    toy.add(r := request("a", range(1, 15), 3, scores=1))
    toy.add(e := request("b", range(1, 15), 3, embed=True))
    for _ in range(3):
        toy.step_all()
    assert toy.scores["a"]
    assert toy.restart(limits(blocks=9, step_tokens=6)) == []
    toy.drain()
    assert_right(toy, r, e, layers=3)


def test_another_pool_may_just_hold_a_prompt_of_which_nothing_is_drawn():
    toy = Layered(limits())
    toy.add(e := request("a", range(1, 13), 9, embed=True))
    toy.add(request("b", range(1, 13), 1, scores=1))
    assert toy.restart(limits(blocks=3)) == ["b"]
    toy.drain()
    assert_right(toy, e, layers=3)


# What a result brings


@pytest.mark.parametrize(
    "examined",
    [[], [PromptOutputs(0, [])], [PromptOutputs(0, [], b"\0" * 16)], [PromptOutputs(1, [])]],
    ids=["nothing", "too few", "another thing", "of another"],
)
def test_a_result_that_does_not_answer_is_not_taken_over(examined: list[PromptOutputs]):
    toy = Layered(limits())
    toy.add(r := request("a", [1, 2, 3], 2, scores=1))
    plan = toy.send()
    assert plan is not None
    with pytest.raises(RemoteProtocolError, match="lacks the answers"):
        toy.scheduler.apply(StepResult(plan.step, [], [], examined=examined))
    toy.lose([])
    toy.drain()
    assert_right(toy, r, layers=3)


def test_what_is_said_of_a_prompt_that_was_cancelled_is_dropped():
    toy = Toy(limits())
    toy.add(request("a", [1, 2, 3], 2, scores=1))
    toy.fill()
    toy.cancel("a")
    toy.run()
    assert toy.take() == []


def test_a_step_brings_only_so_many_sums():
    toy = Toy(limits(blocks=64, step_tokens=64, slots=64))
    requests = [request(f"e{i}", [1 + i % 9], 0, embed=True) for i in range(40)]
    serve(toy, *requests, request("a", [1, 2], 2))
    assert [sum(c.asked is not None for c in plan.chunks) for plan in toy.history if plan.chunks][:2] == [32, 8]
    assert toy.history[0].chunks[-1].sample, "others go on beside them"
