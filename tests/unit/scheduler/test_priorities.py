"""Who goes first where not all can; and that everybody comes to an end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest, QueueFull
from shoal.request import FinishReason, Priority, Request, RequestId, SequenceId
from shoal.scheduler.limits import Limits
from shoal.scheduler.queue import WaitingQueue
from shoal.scheduler.sequence import Sequence
from tests.support.toy_stage import Toy, assert_right, expected, limits, request

URGENT, NORMAL, FLEX, BATCH = Priority


def running(toy: Toy) -> list[str]:
    return [s.request.id for s in toy.scheduler.slots.running]


def waiting(toy: Toy) -> list[str]:
    return [s.request.id for s in toy.scheduler.slots.waiting]


def started(toy: Toy, *requests: Request, steps: int = 1) -> Toy:
    for r in requests:
        toy.add(r)
    for _ in range(steps):
        toy.step()
    return toy


# The line


def sequence(at: int, priority: Priority) -> Sequence:
    r = request(f"r{at}", [1], priority=priority)
    return Sequence(SequenceId(at), r, 0, None, [*r.prompt])


def line(*classes: Priority, ageing: int = 4) -> WaitingQueue:
    queue = WaitingQueue(ageing)
    for at, priority in enumerate(classes):
        queue.put(sequence(at, priority))
    return queue


def test_a_higher_class_stands_before_a_lower_one_and_in_a_class_who_came_first():
    assert [s.id for s in line(BATCH, NORMAL, URGENT, NORMAL, FLEX)] == [2, 1, 3, 4, 0]


def test_who_comes_back_stands_where_it_came():
    queue = line(NORMAL, NORMAL, NORMAL)
    _, second, _ = queue
    queue.remove(second)
    queue.put(sequence(9, NORMAL))
    queue.put(second)
    assert [s.id for s in queue] == [0, 1, 2, 9]


def test_only_who_would_be_ahead_is_counted():
    queue = line(URGENT, NORMAL, NORMAL, BATCH)
    assert [queue.ahead(priority) for priority in Priority] == [1, 3, 3, 4]
    assert [queue.of(priority) for priority in Priority] == [1, 2, 0, 1]


def test_the_first_of_a_starving_class_rises_and_only_the_first():
    queue = line(NORMAL, BATCH, BATCH, ageing=4)
    for _ in range(3):
        queue.age({URGENT})
    assert [s.priority for s in queue] == [NORMAL, BATCH, BATCH]
    queue.age({URGENT})
    assert [(s.id, s.priority) for s in queue] == [(0, URGENT), (1, FLEX), (2, BATCH)]


def test_who_rose_stands_before_those_of_the_higher_class_that_came_later():
    queue = line(FLEX, NORMAL, ageing=1)
    queue.age({NORMAL})
    assert [s.id for s in queue] == [0, 1]


def test_a_class_of_which_something_runs_does_not_age():
    queue = line(BATCH, ageing=2)
    for _ in range(9):
        queue.age({NORMAL})
        queue.age({BATCH})
    assert [s.priority for s in queue] == [BATCH]


def test_a_class_that_waits_anew_starves_anew():
    toy = started(Toy(limits(slots=1, ageing=4)), request("n", [1], 60), request("b", [2], priority=BATCH), steps=3)
    toy.cancel("b")
    toy.step()
    toy.add(request("c", [3], priority=BATCH))
    (c,) = toy.scheduler.slots.waiting
    for _ in range(3):
        toy.step()
        assert [*toy.scheduler.slots.waiting] == [c] and c.priority is BATCH
    toy.step()
    assert c.priority is FLEX


def test_the_highest_class_rises_no_further():
    queue = line(URGENT, ageing=1)
    queue.age({NORMAL})
    assert [s.priority for s in queue] == [URGENT]


# The bound of the queue


def test_a_queue_full_of_batch_requests_takes_interactive_ones():
    toy = started(Toy(limits(queue=2)), *(request(f"b{i}", [1], priority=BATCH) for i in range(2)), steps=0)
    with pytest.raises(QueueFull):
        toy.add(request("b", [1], priority=BATCH))
    toy.add(request("a", [1], n=2))
    toy.add(request("u", [1], n=2, priority=URGENT))
    with pytest.raises(QueueFull):
        toy.add(request("c", [1]))
    assert toy.scheduler.waiting == 6
    assert [toy.scheduler.waiting_of(priority) for priority in Priority] == [2, 2, 0, 2]


def test_a_queue_full_of_interactive_requests_takes_no_batch_requests():
    toy = started(Toy(limits(queue=2)), request("a", [1], n=2), steps=0)
    with pytest.raises(QueueFull):
        toy.add(request("b", [1], priority=BATCH))


# Lanes


def test_a_free_slot_is_for_the_highest_class():
    toy = Toy(limits(slots=1))
    started(toy, request("b", [1], priority=BATCH), request("f", [1], priority=FLEX), request("n", [1]))
    assert running(toy) == ["n"]
    assert waiting(toy) == ["f", "b"]


def test_where_no_slot_is_free_the_youngest_of_the_lowest_class_gives_way():
    toy = started(Toy(limits(slots=3)), *(request(name, [1], 9, priority=p) for name, p in (("b", BATCH), ("c", BATCH), ("f", FLEX))))
    started(toy, request("n", [1], 2))
    assert running(toy) == ["f", "b", "n"]
    assert waiting(toy) == ["c"]


@pytest.mark.parametrize("priority", Priority)
def test_nobody_gives_way_to_the_own_class_or_a_lower_one(priority: Priority):
    toy = started(Toy(limits(slots=2)), request("a", [1], 9, priority=priority), request("b", [2], 9, priority=priority), steps=2)
    started(toy, *(request(f"c{p}", [3], 9, priority=p) for p in Priority if p >= priority))
    assert running(toy) == ["a", "b"]


def test_who_gave_way_says_the_same_in_the_end():
    toy = Toy(limits(slots=2))
    low = [request("b", [1, 2, 3], 12, priority=BATCH, seed=4), request("c", [4], 12, priority=BATCH)]
    started(toy, *low, steps=3)
    high = [request("u", [5], 6, priority=URGENT), request("n", [6, 7], 6)]
    started(toy, *high)
    assert running(toy) == ["u", "n"]
    toy.drain()
    assert_right(toy, *low, *high)
    assert toy.scheduler.counters.preemptions == 2


def test_a_draw_on_its_way_is_not_lost_when_its_sequence_gives_way():
    toy = started(Toy(limits(slots=1)), b := request("b", [1, 2], 6, priority=BATCH), steps=2)
    toy.send()
    toy.add(n := request("n", [3], 2))
    toy.send()
    toy.run()
    assert [(c.request, c.token) for c in toy.take()] == [("b", expected(b, 0)[0][2])]
    toy.drain()
    assert_right(toy, b, n)


def test_forking_choices_give_way_and_say_the_same():
    toy = Toy(limits(slots=4))
    started(toy, b := request("b", range(1, 8), 9, n=4, priority=BATCH), steps=2)
    started(toy, n := request("n", [3], 5, n=3))
    assert running(toy).count("b") < 4
    toy.drain()
    assert_right(toy, b, n)


# Blocks


def test_where_blocks_are_lacking_lower_classes_give_way_to_who_waits():
    toy = started(Toy(limits(blocks=6)), b := request("b", range(1, 12), 9, priority=BATCH), c := request("c", [7], 9, priority=BATCH))
    started(toy, n := request("n", range(11, 1, -1), 4))
    assert running(toy)[:2] == ["b", "n"]  # and perhaps c again, which has no block
    assert [len(s.table) for s in toy.scheduler.slots.running[:2]] == [3, 3]
    toy.drain()
    assert_right(toy, b, c, n)


def test_nobody_gives_way_where_that_would_not_be_enough():
    toy = started(Toy(limits(blocks=6)), request("a", range(1, 16), 5), request("b", [7], 3, priority=BATCH))
    started(toy, request("n", range(11, 1, -1), 4))
    assert running(toy) == ["a", "b"]


def test_for_a_running_sequence_the_youngest_of_the_lowest_class_gives_way():
    toy = Toy(limits(blocks=4, slots=4))
    started(toy, request("b", [1, 2], 10, priority=BATCH), request("n", [3, 4], 10), request("m", [5, 6], 10), steps=0)
    while not toy.scheduler.counters.preemptions:
        toy.step()
    assert (sorted(running(toy)), waiting(toy)) == (["m", "n"], ["b"])


def test_a_prompt_that_is_found_in_the_cache_asks_for_no_more_than_it_lacks():
    toy = Toy(limits(blocks=6))
    started(toy, request("a", range(1, 14), 1), steps=2)
    started(toy, request("b", [7, 8, 9, 10, 11], 9, priority=BATCH))
    started(toy, request("n", range(1, 14), 2))
    assert running(toy) == ["b", "n"]


# One step


def test_draws_of_a_higher_class_come_first_where_a_step_cannot_hold_all():
    toy = Toy(limits(slots=4, step_tokens=2, depth=3))
    started(toy, *(request(name, [ord(name) % 9], 20, priority=p) for name, p in (("b", BATCH), ("c", BATCH), ("n", NORMAL))), steps=3)
    plan = toy.send()
    assert plan is not None
    assert toy.scheduler.request_of(plan.chunks[0].sequence) == "n"


def test_prompts_of_a_higher_class_come_first():
    toy = Toy(limits(step_tokens=8, blocks=32))
    started(toy, request("b", range(1, 21), 2, priority=BATCH), steps=0)
    toy.send()
    toy.add(request("n", range(2, 12), 2))
    plan = toy.send()
    assert plan is not None
    assert [toy.scheduler.request_of(chunk.sequence) for chunk in plan.chunks] == ["n"]


def test_a_running_prompt_of_a_lower_class_is_not_put_off_for_ever():
    """Urgent prompts that fill every step arrive without end."""
    toy = started(Toy(limits(step_tokens=8, blocks=99, slots=9)), b := request("b", range(1, 21), 2, priority=BATCH), steps=1)
    for i in range(400):
        toy.add(request(f"u{i}", [100 + i, *range(7)], 1, priority=URGENT))
        toy.step()
    assert (b.id, 0) in toy.ends


def test_a_draw_of_a_lower_class_is_not_put_off_for_ever():
    """There are always more draws of a higher class than a step takes."""
    toy = started(Toy(limits(slots=9, depth=3, blocks=199)), b := request("b", [1], 4, priority=BATCH), steps=2)
    started(toy, *(request(f"u{i}", [i], 60, priority=URGENT) for i in range(8)), steps=90)
    assert list(toy.ends) == [(b.id, 0)]


# No starvation


def test_who_gives_way_before_its_turn_waits_in_its_class_and_runs_in_a_higher_one():
    toy = started(Toy(limits(slots=1)), request("b", [1], 60, priority=BATCH), steps=3)
    started(toy, request("n", [2], 3))
    (b,) = toy.scheduler.slots.waiting
    assert (b.request.id, b.priority) == ("b", BATCH)
    started(toy, steps=4)
    assert (running(toy), b.standing) == (["b"], FLEX)


def test_who_had_its_turn_can_give_way_again():
    toy = started(Toy(limits(slots=1)), request("b", [1], 60, priority=BATCH), steps=3)
    started(toy, request("n", [2], 1), steps=40)
    (b,) = toy.scheduler.slots.running
    assert b.standing is FLEX
    started(toy, request("m", [2], 3))
    assert (waiting(toy), b.set_back) == (["b"], 0)


def test_giving_way_to_the_own_class_raises_nobody():
    toy = Toy(limits(blocks=4, slots=4))
    rs = [request(name, [ord(name) % 9, 4], 10, priority=BATCH) for name in "abc"]
    started(toy, *rs, steps=0)
    for _ in range(60):
        assert all(s.standing is BATCH for s in (*toy.scheduler.slots.running, *toy.scheduler.slots.waiting))
        toy.step()
    assert toy.scheduler.counters.preemptions > 0
    assert_right(toy, *rs)


def test_short_urgent_requests_set_a_batch_request_back_once_per_class_at_most():
    toy, names = started(Toy(limits(slots=1)), b := request("b", range(1, 9), 20, priority=BATCH), steps=1), count()
    for _ in range(200):
        if not toy.scheduler.waiting:
            toy.add(request(f"u{next(names)}", [2], 1, priority=URGENT))
        toy.step()
    assert_right(toy, b)
    assert toy.scheduler.counters.preemptions <= 3


def test_short_prompts_without_end_leave_the_oldest_one_a_row():
    """A draw takes one of a step's two rows: what is left is for the prompt that came first, however short the others are."""
    toy, names = Toy(limits(6, 3, slots=3, step_tokens=2, ageing=1)), count()
    toy.add(first := request("first", [1], 3, priority=NORMAL))
    for _ in range(60):
        while not toy.scheduler.waiting_of(URGENT):
            toy.add(request(f"u{next(names)}", [2], 3, priority=URGENT))
        toy.step()
    assert_right(toy, first)


def test_who_finds_all_blocks_taken_by_younger_ones_has_the_first_of_the_next_step():
    """They were in the step before it was its turn, so it could not preempt them; it gave way each time, and never ran."""
    toy, names = Toy(limits(6, 1, slots=4, step_tokens=3, depth=2, ageing=2)), count()
    besieged = [request(f"r{i}", [1 + i], 1, n=2, seed=i, priority=NORMAL) for i in range(2)]
    started(toy, *besieged, steps=0)
    for _ in range(60):
        while not toy.scheduler.waiting_of(URGENT):
            at = next(names)
            toy.add(request(f"u{at}", [1 + at % 20], 4, priority=URGENT))
        toy.send()
        toy.run()
        toy.take()
    assert_right(toy, *besieged)


@dataclass(frozen=True)
class Siege:
    limits: Limits
    besieged: list[tuple[Priority, int, int, int]]
    """Class, length of the prompt, tokens, choices."""
    siege: list[tuple[int, int, int]]
    """The requests that keep coming, in turn: length of the prompt, tokens, choices."""
    kept: int
    """So many of them wait, or more, at any time."""
    slack: int
    """Steps that the pipe may run ahead."""


def sieges() -> st.SearchStrategy[Siege]:
    sizes = st.builds(
        limits,
        st.integers(6, 20),
        st.integers(1, 4),
        slots=st.integers(1, 6),
        step_tokens=st.integers(1, 12),
        depth=st.integers(1, 3),
        ageing=st.integers(1, 6),
    )
    prompts, tokens, choices = st.integers(1, 5), st.integers(1, 8), st.integers(1, 3)
    return st.builds(
        Siege,
        sizes,
        st.lists(st.tuples(st.sampled_from([NORMAL, FLEX, BATCH]), prompts, tokens, choices), min_size=1, max_size=5),
        st.lists(st.tuples(prompts, tokens, choices), min_size=1, max_size=4),
        st.integers(1, 4),
        st.integers(1, 3),
    )


@pytest.mark.slow
@settings(max_examples=150)
@given(sieges())
def test_under_urgent_requests_without_end_every_other_request_ends(siege: Siege):
    toy = Toy(siege.limits)
    besieged: list[Request] = []
    for i, (priority, length, tokens, n) in enumerate(siege.besieged):
        r = request(f"r{i}", [1 + (i + j) % 20 for j in range(length)], tokens, n=n, seed=i, priority=priority)
        if length + tokens > siege.limits.longest:
            with pytest.raises(InvalidRequest):
                toy.add(r)
        else:
            toy.add(r)
            besieged.append(r)
    names = count()
    for _ in range(4000):
        while toy.scheduler.waiting_of(URGENT) < siege.kept:
            at = next(names)
            length, tokens, n = siege.siege[at % len(siege.siege)]
            length, tokens = min(length, siege.limits.longest - 1), min(tokens, siege.limits.longest - length)
            toy.add(request(f"u{at}", [1 + (at + j) % 20 for j in range(length)], max(tokens, 1), n=n, priority=URGENT))
        for _ in range(siege.slack):
            toy.send()
        toy.run()
        toy.take()
        if all((r.id, choice) in toy.ends for r in besieged for choice in range(r.n)):
            break
    assert_right(toy, *besieged)
    assert all(finish is FinishReason.LENGTH for finish in toy.ends.values())


def test_only_one_of_many_batch_requests_at_a_time_takes_a_slot_from_urgent_ones():
    toy, names = Toy(limits(slots=4, blocks=99, ageing=30)), count()
    started(toy, *(request(f"b{i}", [i], 8, priority=BATCH) for i in range(12)), steps=0)
    for _ in range(500):
        while toy.scheduler.waiting_of(URGENT) < 4:
            toy.add(request(f"u{next(names)}", [2], 3, priority=URGENT))
        toy.step()
        assert sum(name.startswith("b") for name in running(toy)) <= 1
    assert 5 <= sum(name.startswith("b") for name, _ in toy.ends) <= 500 // 30


def test_what_a_new_head_takes_up_keeps_its_class():
    toy = started(Toy(limits(slots=1)), request("b", [1], 4, priority=BATCH), steps=0)
    taken = request("n", [1, 2], 5)
    toy.said[RequestId("n"), 0] = [expected(taken, 0)[0][0]]
    toy.scheduler.add(taken, {0: [expected(taken, 0)[0][0]]})
    toy.step()
    assert running(toy) == ["n"]
    toy.drain()
    assert_right(toy, taken)
