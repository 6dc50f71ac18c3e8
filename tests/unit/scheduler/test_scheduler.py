"""What runs in which step; and whatever happens on the way, every sequence says what it would have said alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest, QueueFull
from shoal.request import FinishReason, Priority, Request, RequestId, SamplingParams, TokenChunk
from shoal.scheduler.plan import StepResult
from tests.support.toy_stage import (
    VOCABULARY,
    Toy,
    ToyStage,
    asking,
    expected,
    expected_embedding,
    expected_scores,
    limits,
    request,
)


def assert_right(toy: Toy, *requests: Request) -> None:
    """Every choice said exactly what it says alone."""
    for r in requests:
        for choice in range(r.n):
            assert (toy.said[r.id, choice], toy.ends.get((r.id, choice))) == expected(r, choice)


def serve(toy: Toy, *requests: Request) -> None:
    for r in requests:
        toy.add(r)
    toy.drain()
    assert_right(toy, *requests)


# What is refused


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "param"),
    [(0, 1, "prompt"), (64, 1, "prompt"), (65, 1, "prompt"), (4, 0, "max_tokens"), (4, -1, "max_tokens"), (60, 5, "max_tokens")],
)
def test_what_can_never_run_is_refused(prompt: int, max_tokens: int, param: str):
    toy = Toy(limits())
    with pytest.raises(InvalidRequest) as refused:
        toy.add(request("a", [1] * prompt, max_tokens))
    assert refused.value.param == param
    assert toy.scheduler.waiting == 0


def test_the_pool_limits_a_sequence_as_the_context_does():
    assert limits(blocks=3, block_tokens=4, context=64).longest == 12
    assert limits(blocks=99, block_tokens=4, context=64).longest == 64


def test_a_sequence_may_fill_the_whole_pool():
    serve(Toy(limits(blocks=3)), request("a", [1] * 5, 7))


def test_two_requests_of_one_id_are_refused():
    toy = Toy(limits())
    toy.add(request("a", [1]))
    with pytest.raises(InvalidRequest, match="already"):
        toy.add(request("a", [2]))


def test_an_id_may_come_again_after_its_end():
    toy = Toy(limits())
    serve(toy, request("a", [1], 2))
    toy.ends.clear()
    serve(toy, request("a", [2], 2))


def test_a_full_queue_refuses_all_choices_or_none():
    toy = Toy(limits(queue=3))
    toy.add(request("a", [1], n=2))
    with pytest.raises(QueueFull):
        toy.add(request("b", [1], n=2))
    toy.add(request("c", [1]))
    assert toy.scheduler.waiting == 3


# One step


def test_nothing_to_do_is_no_step():
    assert Toy(limits()).send() is None


def test_a_prompt_and_its_draw_are_one_step():
    toy = Toy(limits())
    toy.add(request("a", [5, 6, 7]))
    plan = toy.send()
    assert plan is not None
    (chunk,) = plan.chunks
    assert (chunk.position, chunk.tokens, chunk.sample, len(chunk.blocks)) == (0, [5, 6, 7], True, 1)
    assert [o.sequence for o in plan.opened] == [chunk.sequence]


def test_a_draw_on_its_way_lets_the_sequence_rest():
    toy = Toy(limits(depth=3))
    toy.add(request("a", [5]))
    assert toy.send() is not None
    assert toy.send() is None


def test_later_steps_carry_only_what_is_new():
    toy = Toy(limits())
    toy.add(request("a", [5, 6, 7], 6))
    toy.step()
    plan = toy.step()
    assert plan is not None
    assert not plan.opened
    assert (plan.chunks[0].position, len(plan.chunks[0].tokens), plan.chunks[0].blocks) == (3, 1, [])


def test_a_long_prompt_comes_in_chunks_that_may_follow_each_other():
    toy = Toy(limits(depth=2, step_tokens=16))
    toy.add(request("a", range(1, 21), 2))
    first, second = toy.send(), toy.send()
    assert first is not None
    assert second is not None
    assert [(p.chunks[0].position, p.rows, p.chunks[0].sample) for p in (first, second)] == [(0, 8, False), (8, 8, False)]


def test_a_prompt_for_the_penalty_travels_only_where_it_is_needed():
    toy = Toy(limits())
    plain = request("a", [1, 2])
    toy.add(plain)
    toy.add(msgspec.structs.replace(plain, id=RequestId("b"), sampling=SamplingParams(repetition_penalty=1.2)))
    plan = toy.send()
    assert plan is not None
    assert [o.prompt for o in plan.opened] == [[], [1, 2]]


def test_choices_draw_from_seeds_of_their_own():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2], n=3, seed=2**64 - 2))
    seeds = [o.sampling.seed for plan in toy.history for o in plan.opened]
    assert seeds == [2**64 - 2, 2**64 - 1, 0]


def test_draws_are_spread_over_the_pipe():
    toy = Toy(limits(depth=2, slots=4))
    for name in "abcd":
        toy.add(request(name, [ord(name) % VOCABULARY], 8))
    toy.step()
    sizes = [len(plan.chunks) for plan in (toy.send(), toy.send()) if plan is not None]
    assert sizes == [2, 2]


def test_streams_that_came_one_by_one_come_to_share_steps():
    toy = Toy(limits(depth=1))
    a, b = request("a", [1, 2], 8), request("b", [3, 4], 8)
    for r in (a, b):  # one step each, both in flight
        toy.add(r)
        toy.fill()
    assert [len(plan.chunks) for plan in toy.history] == [1, 1]
    toy.drain()
    assert [len(plan.chunks) for plan in toy.history if plan.chunks][2:] == [2] * 7
    assert [toy.said[r.id, 0] for r in (a, b)] == [expected(r, 0)[0] for r in (a, b)]


def test_slots_limit_what_runs_at_once():
    toy = Toy(limits(slots=2))
    for name in "abc":
        toy.add(request(name, [1], 3))
    toy.step()
    assert (toy.scheduler.running, toy.scheduler.waiting) == (2, 1)


def test_a_waiting_prompt_does_not_stop_the_draws():
    toy = Toy(limits(step_tokens=8))
    toy.add(request("a", [1], 10))
    toy.step()
    toy.add(request("b", range(1, 21), 2))
    plan = toy.send()
    assert plan is not None
    assert [len(chunk.tokens) for chunk in plan.chunks] == [1, 7]


def pipeline(toy: Toy, stages: int) -> Iterator[tuple[int, list[TokenChunk]]]:
    """Steps through stages that take as long as a step has rows: when each result came, and what it brought."""
    now, free = 0, [0] * stages
    ends: deque[int] = deque()
    while True:
        while (plan := toy.send()) is not None:
            end = now
            for stage in range(stages):
                free[stage] = end = max(free[stage], end) + plan.rows
            ends.append(end)
        if not ends:
            return
        now = ends.popleft()
        toy.run()
        yield now, toy.take()


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("prompts", [1, 3])
def test_running_streams_wait_for_two_chunks_of_a_long_prompt_at_most(stages: int, prompts: int):
    toy = Toy(limits(999, 8, context=2100, step_tokens=256, depth=stages))
    streams = [request(f"s{i}", [i], 90) for i in range(5)]
    for r in streams:
        toy.add(r)
    last: dict[str, int] = {}
    waits: list[int] = []
    for now, chunks in pipeline(toy, stages):
        for chunk in chunks:
            if len(toy.said[chunk.request, 0]) > 1:
                waits.append(now - last[chunk.request])
            last[chunk.request] = now
        if len(toy.said[streams[0].id, 0]) == 9 and "long-0" not in toy.scheduler._requests:
            for i in range(prompts):
                toy.add(request(f"long-{i}", range(i, 2000 + i), 1))
    assert_right(toy, *streams)
    assert toy.scheduler.counters.prompt_tokens == 5 + 2000 * prompts
    assert max(waits) <= 2 * (toy.limits.chunk + len(streams)) * stages


# Ends


def test_max_tokens_ends_a_choice():
    toy = Toy(limits())
    serve(toy, request("a", [3, 1], 5))
    assert toy.ends[RequestId("a"), 0] is FinishReason.LENGTH


def test_a_stop_token_ends_a_choice_and_is_not_said():
    toy = Toy(limits())
    serve(toy, request("a", [3], 60, stops=frozenset(range(VOCABULARY))))
    assert toy.chunks[0].token is None
    assert toy.chunks[0].finish is FinishReason.STOP


def test_the_stages_forget_what_is_over():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2, 3], 3, n=2))
    assert len(toy.stage) == 0
    assert toy.history[-1].chunks == []
    assert sorted(s for plan in toy.history for s in plan.closed) == [0, 1]


def test_cancelling_before_anything_ran_tells_the_stages_nothing():
    toy = Toy(limits())
    toy.add(request("a", [1]))
    toy.cancel("a")
    assert toy.send() is None
    assert toy.scheduler.waiting == 0


def test_cancelling_while_a_draw_is_on_its_way_says_nothing_more():
    toy = Toy(limits())
    toy.add(request("a", [1]))
    toy.send()
    toy.cancel("a")
    toy.run()
    assert toy.take() == []
    toy.drain()
    assert toy.scheduler.pool.used == len(toy.stage) == 0


def test_cancelling_one_choice_leaves_the_others():
    toy, r = Toy(limits()), request("a", [1, 2, 3], 6, n=2)
    toy.add(r)
    toy.step()
    toy.cancel("a", 0)
    toy.drain()
    assert (toy.said[r.id, 1], toy.ends[r.id, 1]) == expected(r, 1)


def test_cancelling_the_unknown_does_nothing():
    toy = Toy(limits())
    toy.cancel("nobody")
    assert toy.send() is None


# Prefixes and forks


def test_a_prompt_that_was_computed_is_found_again():
    toy = Toy(limits())
    serve(toy, request("a", range(1, 11), 2))
    serve(toy, request("b", range(1, 11), 2, seed=9))
    assert toy.scheduler.counters.cached_tokens == 8
    assert toy.chunks[-1].cached == 8


def test_an_answer_that_was_computed_is_found_again():
    toy = Toy(limits())
    serve(toy, first := request("a", [1, 2], 9))
    serve(toy, request("b", [1, 2, *expected(first, 0)[0]], 2))
    assert toy.scheduler.counters.cached_tokens == 8


def test_the_last_token_of_a_prompt_is_always_computed():
    toy = Toy(limits())
    serve(toy, request("a", range(1, 9), 1))
    serve(toy, request("b", range(1, 9), 1))
    assert toy.scheduler.counters.cached_tokens == 4


def test_another_beginning_is_no_prefix():
    toy = Toy(limits())
    serve(toy, request("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], 1))
    serve(toy, request("b", [9, 2, 3, 4, 5, 6, 7, 8, 9], 1))
    assert toy.scheduler.counters.cached_tokens == 0


@pytest.mark.parametrize("length", range(1, 10))
def test_choices_share_the_prompt_and_part_ways_after_it(length: int):
    toy = Toy(limits(blocks=24))
    serve(toy, request("a", range(1, length + 1), 7, n=4))
    computed = sum(plan.rows for plan in toy.history)
    assert computed == length + 3 + 4 * 6
    assert len([copy for plan in toy.history for copy in plan.copies]) == 3


def test_choices_whose_first_is_gone_run_on_their_own():
    toy, r = Toy(limits()), request("a", range(1, 11), 4, n=3)
    toy.add(r)
    toy.send()
    toy.cancel("a", 0)
    toy.drain()
    assert [toy.said[r.id, c] for c in (1, 2)] == [expected(r, c)[0] for c in (1, 2)]


# Too little memory


def test_the_youngest_makes_room_and_says_the_same_in_the_end():
    toy = Toy(limits(blocks=4, slots=4))
    serve(toy, request("a", [1, 2], 10), request("b", [3, 4], 10), request("c", [5, 6], 10))
    assert toy.scheduler.counters.preemptions > 0


def test_a_preempted_sequence_is_opened_once():
    toy = Toy(limits(blocks=4))
    serve(toy, request("a", [1, 2], 10), request("b", [3, 4], 10))
    assert sorted(o.sequence for plan in toy.history for o in plan.opened) == [0, 1]
    assert any(plan.dropped for plan in toy.history)


def test_the_oldest_is_never_set_back_alone_at_the_pipe():
    toy = Toy(limits(blocks=4, slots=3))
    for name in "abc":
        toy.add(request(name, [ord(name) % 20], 12))
    toy.drain()
    assert next(iter(toy.ends)) == ("a", 0)


def test_a_forked_choice_waits_for_memory():
    toy = Toy(limits(blocks=3, block_tokens=4))
    serve(toy, request("a", range(1, 9), 4, n=3))


# Whatever happens


@dataclass(frozen=True)
class Scenario:
    blocks: int
    block_tokens: int
    slots: int
    step_tokens: int
    depth: int
    prompts: list[list[int]]
    classes: list[Priority]
    """Of the requests, in turn."""
    events: list[int]


def scenarios() -> st.SearchStrategy[Scenario]:
    token = st.integers(1, 2)  # few, so that prefixes are shared
    prompts = st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=8)
    return st.builds(
        Scenario,
        blocks=st.integers(3, 12),
        block_tokens=st.integers(1, 4),
        slots=st.integers(1, 6),
        step_tokens=st.integers(1, 12),
        depth=st.integers(1, 4),
        prompts=prompts,
        classes=st.lists(st.sampled_from(Priority), min_size=1, max_size=4),
        events=st.lists(st.integers(0, 999), max_size=120),
    )


def play(scenario: Scenario) -> tuple[Toy, dict[str, Request], set[tuple[str, int]]]:
    """Adds, sends, runs, applies and cancels as the events say; what was cancelled is not expected to end."""
    toy = Toy(limits(scenario.blocks, scenario.block_tokens, slots=scenario.slots, step_tokens=scenario.step_tokens, depth=scenario.depth))
    waiting = [asking(i, p, c) for i, (p, c) in enumerate(zip(scenario.prompts, cycle(scenario.classes), strict=False))]
    added: dict[str, Request] = {}
    cancelled: set[tuple[str, int]] = set()
    for event in scenario.events:
        what, pick = event % 10, event // 10
        if what <= 1 and waiting:
            add(toy, waiting.pop(), added)
        elif what == 2 and added:
            cancel(toy, list(added.values())[pick % len(added)], pick, cancelled)
        elif what <= 5:
            toy.run()
        else:
            toy.take()
            toy.fill()
    for r in waiting:
        add(toy, r, added)
    toy.drain()
    return toy, added, cancelled


def cancel(toy: Toy, r: Request, pick: int, cancelled: set[tuple[str, int]]) -> None:
    choice = pick % r.n if pick % 2 else None
    toy.cancel(r.id, choice)
    cancelled |= {(r.id, c) for c in range(r.n) if choice in (None, c) and (r.id, c) not in toy.ends}


def add(toy: Toy, r: Request, added: dict[str, Request]) -> None:
    if len(r.prompt) + r.max_tokens > toy.limits.longest:
        with pytest.raises(InvalidRequest):
            toy.add(r)
        return
    toy.add(r)
    toy.fill()
    added[r.id] = r


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_every_sequence_says_what_it_would_say_alone(scenario: Scenario):
    toy, added, cancelled = play(scenario)
    for r in added.values():
        scores, embedding = toy.scores[r.id], toy.embeddings[r.id]
        if (r.id, 0) in cancelled:
            assert scores == expected_scores(r)[: len(scores)]
            assert embedding in (b"", expected_embedding(r))
        else:
            assert (scores, embedding) == (expected_scores(r), expected_embedding(r))
        for choice in range(r.n):
            said, (right, finish) = toy.said[r.id, choice], expected(r, choice)
            if (r.id, choice) in cancelled:
                assert said == right[: len(said)]
            else:
                assert (said, toy.ends.get((r.id, choice))) == (right, finish)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_nothing_is_left_behind(scenario: Scenario):
    toy, _, _ = play(scenario)
    scheduler = toy.scheduler
    assert (scheduler.running, scheduler.waiting, scheduler.in_flight, scheduler.pool.used) == (0, 0, 0, 0)
    assert len(toy.stage) == 0


def test_a_draw_for_a_sequence_that_is_gone_is_dropped():
    toy = Toy(limits())
    toy.add(request("a", [1]))
    plan = toy.send()
    assert plan is not None
    toy.cancel("a")
    assert toy.scheduler.apply(StepResult(plan.step, [], [])) == []


def test_a_prompt_that_runs_apart_does_not_wait_for_the_end_of_all_draws():
    toy, p = Toy(limits(blocks=64)), request("p", [9, 8], 2)
    for i in range(3):
        toy.add(request(f"d{i}", [i], 50))
    toy.step()
    toy.add(p)
    toy.scheduler.apart.add(p.id)
    for _ in range(6):
        toy.step()
    assert_right(toy, p)
    assert [len(plan.chunks) for plan in toy.history if any(c.sequence == 3 for c in plan.chunks)] == [1, 4]


# Draws that are put off


def put_off(toy: Toy, which: int) -> None:
    """Of the last result, draws whose bit is set did not come."""
    result = toy.results.pop()
    kept = [sampled for i, sampled in enumerate(result.sampled) if not which >> i & 1]
    toy.results.append(StepResult(result.step, kept, []))


def test_a_draw_that_is_put_off_is_asked_for_again():
    toy, r = Toy(limits()), request("a", [1, 2, 3, 4], 3)
    toy.add(r)
    for _ in range(3):
        toy.send()
        toy.run()
        put_off(toy, 1)
        assert toy.take() == []
    assert [(c.position, c.tokens, c.sample) for plan in toy.history for c in plan.chunks] == [
        (0, [1, 2, 3, 4], True),
        (3, [4], True),
        (3, [4], True),
    ]
    toy.drain()
    assert_right(toy, r)


def test_others_draw_while_one_is_put_off():
    toy, a, b = Toy(limits()), request("a", [1], 3), request("b", [2, 3], 3)
    toy.add(a)
    toy.add(b)
    for _ in range(3):
        toy.send()
        toy.run()
        put_off(toy, 1 if toy.plans or toy.history[-1].chunks[0].sequence == 0 else 2)
        toy.take()
    assert (len(toy.said["a", 0]), len(toy.said["b", 0])) == (0, 3)
    toy.drain()
    assert_right(toy, a, b)


def test_a_draw_that_is_put_off_takes_no_block():
    toy, a, b = Toy(limits(blocks=4)), request("a", range(1, 9), 3), request("b", range(11, 19), 3)
    toy.add(a)
    toy.add(b)
    toy.send()
    toy.run()
    put_off(toy, 3)
    toy.take()
    assert toy.scheduler.pool.available == 0  # both prompts fill their blocks
    toy.send()
    assert [c.position for c in toy.history[-1].chunks] == [7, 7]
    assert toy.scheduler.counters.preemptions == 0
    toy.drain()
    assert_right(toy, a, b)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 2)), min_size=1, max_size=5),
    st.integers(9, 24),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["send", "run", "take", "rewind"]), st.integers(0, 7)), max_size=150),
)
def test_put_off_draws_change_nothing_that_is_said(
    shapes: list[tuple[int, int, int]], blocks: int, depth: int, happenings: list[tuple[str, int]]
):
    toy = Toy(limits(blocks=blocks, depth=depth))
    asked = [request(f"r{i}", range(1, size + 1), tokens, n=n, seed=i) for i, (size, tokens, n) in enumerate(shapes)]
    for r in asked:
        toy.add(r)
    for what, which in happenings:
        if what == "send":
            toy.send()
        elif what == "run" and toy.plans:
            toy.run()
            put_off(toy, which)
        elif what == "take":
            toy.take()
        elif what == "rewind" and which == 0:  # the stage keeps its cells and forgets the rest
            toy.plans.clear()
            toy.results.clear()
            toy.stage = ToyStage(toy.limits.blocks, toy.limits.block_tokens, toy.stage)
            toy.scheduler.rewind()
            toy.scheduler.check()
    toy.drain()
    assert_right(toy, *asked)
