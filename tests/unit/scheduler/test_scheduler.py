"""What is refused, what runs in which step, and how it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec
import pytest

from shoal.errors import InvalidRequest, QueueFull
from shoal.request import FinishReason, RequestId, SamplingParams, TokenChunk
from shoal.scheduler.plan import StepResult
from tests.support.toy_stage import (
    VOCABULARY,
    Toy,
    assert_right,
    expected,
    limits,
    request,
    serve,
)

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


# Whatever happens


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
