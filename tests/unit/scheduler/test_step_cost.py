"""What a step is predicted to take, what it teaches, and what a step may hold: pure figures."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.request import Priority
from shoal.scheduler.budget import StepBudget
from shoal.scheduler.cost import StageCost, StepCost, StepLoad, StreamedExperts
from shoal.scheduler.limits import Limits
from shoal.scheduler.plan import Chunk, PromptQuery, StageTrace
from tests.support.toy_stage import Toy, expected, limits, request

NO_WAYS = StageCost(0.0, 0.0, 0.0, 0.0)
REAL = StageCost(0.01, 0.001, 1e-6, 0.0005)


def cost(*stages: StageCost, ways: StageCost = NO_WAYS) -> StepCost:
    return StepCost(stages, ways)


def seconds(stage: StageCost, load: StepLoad) -> float:
    return stage.step + stage.row * load.rows + stage.context * load.context + stage.logits * load.logits


def trace(busy: float) -> StageTrace:
    return StageTrace(0.0, 0.0, busy, 0.0, 0.0)


def teach(learner: StepCost, real: StageCost, load: StepLoad, times: int = 1) -> None:
    for _ in range(times):
        learner.learn(load, [trace(seconds(real, load))])


# What a step holds


def test_a_row_attends_to_all_before_it_and_to_itself():
    assert StepLoad.of(0, 3, 0) == StepLoad(3, 1 + 2 + 3, 0)
    assert StepLoad.of(100, 2, 1) == StepLoad(2, 101 + 102, 1)


def test_logits_are_computed_for_a_draw_and_for_every_row_that_is_scored():
    assert StepLoad.of_chunk(Chunk(0, 10, [1, 2], [], True)) == StepLoad.of(10, 2, 1)
    assert StepLoad.of_chunk(Chunk(0, 10, [1, 2, 3], [], True, PromptQuery([2, 3], 0, False))) == StepLoad.of(10, 3, 3)


@given(st.integers(0, 5000), st.integers(1, 200), st.integers(1, 200))
def test_a_chunk_costs_the_same_wherever_it_is_cut(position: int, first: int, second: int):
    assert StepLoad.of(position, first, 0) + StepLoad.of(position + first, second, 0) == StepLoad.of(position, first + second, 0)


# What it takes


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_a_stream_waits_for_one_step_more_than_there_are_stages(stages: int):
    load = StepLoad.of(1000, 64, 1)
    assert cost(*[REAL] * stages).wait(load) == pytest.approx((stages + 1) * seconds(REAL, load), rel=1e-4)


def test_the_slowest_stage_decides():
    slow = StageCost(0.01, 0.004, 1e-6, 0.0)
    load = StepLoad.of(0, 100, 0)
    assert cost(REAL, slow, REAL).wait(load) == pytest.approx(4 * seconds(slow, load), rel=1e-4)


def test_a_step_takes_its_way_over_slow_links():
    links = StageCost(0.1, 0.01, 0.0, 0.0)
    load = StepLoad.of(0, 100, 0)
    assert cost(REAL, REAL, ways=links).wait(load) == pytest.approx(2 * seconds(REAL, load) + 0.1 + 1.0, rel=1e-4)


@given(st.integers(0, 8000), st.integers(1, 256), st.floats(0.001, 10), st.booleans())
def test_what_fits_is_the_most_that_keeps_the_time(position: int, rows: int, wait: float, scored: bool):
    model, draws = cost(REAL, REAL), StepLoad.of(500, 1, 1)
    found = model.fitting(draws, position, rows, scored, wait)
    assert 0 <= found <= rows

    def joined(count: int) -> float:
        return model.wait(draws + StepLoad.of(position, count, count if scored else 0))

    assert found == 0 or joined(found) <= wait
    assert found == rows or joined(found + 1) > wait


def test_late_rows_of_a_context_take_a_smaller_chunk():
    sizes = [cost(REAL).fitting(StepLoad(), position, 256, False, 0.25) for position in (0, 1000, 4000, 8000, 32000, 100_000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 4 * sizes[-1] > 0


# What steps teach


@pytest.mark.slow
@given(*[st.floats(0.05, 20) for _ in range(4)])
def test_whatever_was_guessed_a_prompt_soon_takes_what_it_was_predicted_to(step: float, row: float, context: float, logits: float):
    learner = cost(StageCost(REAL.step * step, REAL.row * row, REAL.context * context, REAL.logits * logits))
    for position in range(0, 4000, 64):
        load = StepLoad.of(position, 64, 0)
        if position > 1500:
            assert 0.8 * seconds(REAL, load) < learner.wait(load) / 2 < 1.6 * seconds(REAL, load)
        teach(learner, REAL, load)


def test_the_first_step_says_more_than_any_guess():
    learner = cost(StageCost(0.1, 0.01, 1e-5, 0.005))
    load = StepLoad.of(0, 1, 1)
    teach(learner, REAL, load)
    assert 1 < learner.wait(load) / (2 * seconds(REAL, load)) < 2  # it was ten times too long


@pytest.mark.parametrize("times", [0.1, 10.0])
def test_a_machine_that_becomes_another_is_followed(times: float):
    learner, load = cost(REAL), StepLoad.of(2000, 64, 1)
    teach(learner, REAL, load, 5)
    other = StageCost(times * REAL.step, times * REAL.row, times * REAL.context, times * REAL.logits)
    teach(learner, other, load, 8 if times > 1 else 30)
    assert learner.wait(load) == pytest.approx(2 * seconds(other, load), rel=0.1)


def test_what_takes_longer_is_believed_sooner_than_what_is_done_early():
    late, early = cost(REAL), cost(REAL)
    load = StepLoad.of(0, 64, 0)
    for learner in (late, early):
        teach(learner, REAL, load)
    usual = late.wait(load)
    late.learn(load, [trace(2 * seconds(REAL, load))], 0.0)
    early.learn(load, [trace(seconds(REAL, load) / 2)], 0.0)
    assert late.wait(load) / usual > usual / early.wait(load)


@given(st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 256), st.floats(0, 1e6)), max_size=30))
def test_no_measurement_breaks_it(steps: list[tuple[int, int, float]]):
    learner = cost(REAL, ways=StageCost(0.001, 1e-5, 0.0, 0.0))
    for position, rows, busy in steps:
        learner.learn(StepLoad.of(position, rows, 1), [trace(busy)], 2 * busy)
        assert 0 < learner.wait(StepLoad.of(4000, 64, 1)) < float("inf")


def test_a_step_of_a_route_with_other_stages_says_nothing():
    learner = cost(REAL)
    before = learner.wait(StepLoad(1, 1, 1))
    learner.learn(StepLoad(1, 1, 1), [trace(5.0), trace(5.0)], 0.0)
    assert learner.wait(StepLoad(1, 1, 1)) == before


def test_what_lies_between_the_stages_is_learned_from_the_flight():
    learner = cost(REAL, ways=StageCost(0.001, 1e-5, 0.0, 0.0))
    load = StepLoad.of(0, 64, 0)
    for _ in range(20):
        learner.learn(load, [trace(seconds(REAL, load))], seconds(REAL, load) + 1.5)
    assert learner.wait(load) == pytest.approx(seconds(REAL, load) + 1.5, rel=0.05)


# What was never measured


def test_larger_steps_are_tried_one_at_a_time():
    learner = cost(REAL)
    assert learner.room([]) == StepLoad(4, 8192)
    assert learner.room([StepLoad.of(0, 5, 0)]) == StepLoad(4, 8192)
    teach(learner, REAL, StepLoad.of(0, 4, 0))
    assert learner.room([StepLoad.of(0, 4, 0)]) == StepLoad(8, 10 + 8192)
    assert learner.room([StepLoad.of(0, 8, 0)]) == StepLoad(4, 10 + 8192)
    teach(learner, REAL, StepLoad.of(0, 8, 0))
    assert learner.room([]).rows == 16


def test_steps_grow_though_every_context_is_longer_than_the_one_before():
    """A prompt beside streams: each step attends to a little more than the last one, and is no larger for that."""
    learner, at, rows = cost(REAL), 5000, 0
    for _ in range(12):
        flying = [StepLoad.of(at + i, 1, 1) + StepLoad.of(at + i, 1, 0) for i in range(4)]
        rows = learner.room(flying).rows
        learner.learn(StepLoad.of(at, rows, 0), [trace(0.001 * rows)])
        at += rows
    assert rows >= 64


def test_draws_do_not_make_what_chunks_take_unknown_but_other_chunks_do():
    learner = cost(REAL)
    learner.learn(StepLoad.of(0, 100, 0), [trace(1.0)])
    for _ in range(50):
        learner.learn(StepLoad.of(50, 1, 1), [trace(0.1)], chunks=False)
    assert learner.room([]).rows == 200
    for _ in range(16):
        learner.learn(StepLoad.of(8000, 10, 0), [trace(0.1)])
    assert learner.room([]).rows == 20


# What a step may hold


def budget(streams: bool) -> tuple[StepBudget, StepCost]:
    """Of 256 rows, on a stage that is known."""
    model = cost(REAL)
    teach(model, REAL, StepLoad.of(8000, 256, 1))
    return StepBudget(256, 256, model, 0.5, streams), model


@pytest.mark.parametrize("position", [0, 1000, 8000, 30_000])
@pytest.mark.parametrize("draws", [1, 8])
def test_two_fifths_of_the_wait_are_planned_where_streams_run(position: int, draws: int):
    made, model = budget(True)
    for _ in range(draws):
        made.take(StepLoad.of(100, 1, 1), False)
    rows = made.prompt(position, 256, False, 1.0)
    made.take(StepLoad.of(position, rows, 0), True)
    assert model.wait(made.load) <= 0.2 < model.wait(made.load + StepLoad.of(position + rows, 1, 0))


def test_without_streams_a_chunk_may_take_the_whole_bound():
    rows = [budget(streams)[0].prompt(4000, 256, False, 1.0) for streams in (True, False)]
    assert rows[1] > 1.8 * rows[0]


def test_a_prompt_gets_a_quarter_of_what_the_draws_take_where_they_take_all():
    made, model = budget(True)
    for _ in range(50):
        made.take(StepLoad.of(8000, 1, 1), False)
    alone = model.wait(made.load)
    made.take(StepLoad.of(0, made.prompt(0, 256, False, 1.0), 0), True)
    assert 1.2 * alone < model.wait(made.load) <= 1.25 * alone


def test_a_prompt_gets_a_row_where_nothing_fits():
    slow = cost(StageCost(5.0, 5.0, 1e-3, 0.1))
    assert StepBudget(256, 256, slow, 0.5, True).prompt(0, 256, False, 1.0) == 1


def test_two_prompts_share_a_step():
    made, _ = budget(True)
    first = made.prompt(4000, 256, False, 0.5)
    made.take(StepLoad.of(4000, first, 0), True)
    second = made.prompt(4000, 256, False, 1.0)
    assert abs(first - second) <= 2


def test_rows_that_are_scored_count_with_their_logits():
    dear = cost(StageCost(0.01, 0.001, 1e-6, 0.01))
    made = [StepBudget(256, 256, dear, 0.5, True) for _ in range(2)]
    dear.learn(StepLoad.of(0, 256, 256), [trace(0.01 + 0.256 + 0.033 + 2.56)], 0.0)
    assert made[0].prompt(0, 256, False, 1.0) >= made[1].prompt(0, 256, True, 1.0)


def test_without_a_bound_rows_alone_count():
    assert StepBudget(256, 100, cost(REAL), 0.0, True).prompt(8000, 256, False, 1.0) == 100
    assert StepBudget(256, 100, None, 0.5, True).prompt(8000, 256, False, 1.0) == 100


def prefilled(guess: StageCost, real: StageCost, slower: float, tokens: int) -> tuple[int, float]:
    """How many steps a prompt takes on two stages that become slower at its 500th token, and the seconds of the slowest stage."""
    model, flying, at, steps, took = cost(guess, guess), deque[StepLoad](), 0, 0, 0.0
    while at < tokens or flying:
        while at < tokens and len(flying) <= 2:
            rows = StepBudget(256, 256, model, 0.5, False, flying).prompt(at, tokens - at, False, 1.0)
            flying.append(StepLoad.of(at, rows, 0))
            at, steps = at + rows, steps + 1
        load = flying.popleft()
        busy = seconds(real, load) * (slower if at > 500 else 1)
        took += busy
        model.learn(load, [trace(busy)] * 2)
    return steps, took


@pytest.mark.slow
@pytest.mark.parametrize("guess", [(1, 1, 1, 1), (2, 2, 8, 2), (2, 8, 2, 2), (0.25, 2, 2, 2)])
def test_steps_do_not_shrink_to_nothing_because_what_is_fixed_in_them_is_taken_for_the_rows(guess: tuple[float, ...]):
    real = StageCost(0.025, 0.0025, 3e-7, 0.001)
    guessed = StageCost(real.step * guess[0], real.row * guess[1], real.context * guess[2], real.logits * guess[3])
    steps, took = prefilled(guessed, real, 6.0, 8000)
    rows = 6 * (real.row * 8000 + real.context * 8000 * 8000 / 2)
    assert steps < 4000
    assert took < 4 * rows


# In the scheduler


class Timed(Toy):
    """A scheduler before one stage whose steps take what they cost."""

    def __init__(self, limits: Limits, real: StageCost) -> None:
        super().__init__(limits)
        self.real = real
        self.scheduler.cost = cost(real)
        self.taken: list[float] = []
        """Seconds of the steps with chunks."""

    def run(self) -> None:
        plan = self.plans[0]
        super().run()
        load = sum((StepLoad.of_chunk(chunk) for chunk in plan.chunks), StepLoad())
        busy = seconds(self.real, load)
        if load.rows > len(plan.chunks):
            self.taken.append(busy)
        self.results[-1] = msgspec.structs.replace(self.results[-1], traces=[trace(busy)])


@pytest.mark.slow
def test_steps_beside_a_stream_take_what_they_may_at_any_place_of_a_prompt():
    toy = Timed(limits(900, 8, context=6000, step_tokens=256, wait=0.5), StageCost(0.002, 0.0005, 2e-6, 0.001))
    stream, long = request("s", [1], 400), request("long", [i % 50 for i in range(1500)], 1)
    toy.add(stream)
    toy.step()
    toy.add(long)
    toy.drain()
    assert max(toy.taken) <= 0.1
    assert sum(busy > 0.095 for busy in toy.taken) > 5
    assert all((toy.said[r.id, 0], toy.ends[r.id, 0]) == expected(r, 0) for r in (stream, long))


def test_a_short_prompt_does_not_wait_for_the_long_ones_before_it():
    toy = Toy(limits(900, 8, context=600, step_tokens=32, slots=8))
    longs = [request(f"long-{i}", [i * 7 + j for j in range(400)], 1) for i in range(3)]
    short = request("short", [3] * 40, 1)
    for r in longs:
        toy.add(r)
    toy.step()
    toy.add(short)
    toy.drain()
    assert all((toy.said[r.id, 0], toy.ends[r.id, 0]) == expected(r, 0) for r in (*longs, short))
    order = [chunk.request for chunk in toy.chunks if chunk.token is not None]
    assert order == ["short", "long-0", "long-1", "long-2"]
    computed = [sum(len(c.tokens) for c in plan.chunks if c.sequence == 0) for plan in toy.history]
    assert all(rows >= 16 for rows in computed[: computed.index(0) - 1])  # the oldest goes on meanwhile, with half of each step


def test_a_lower_class_does_not_pass_the_oldest_prompt_because_it_is_short():
    toy = Toy(limits(900, 8, context=600, step_tokens=32, slots=8))
    toy.add(request("long", range(400), 1))
    toy.step()
    toy.add(request("short", [3] * 40, 1, priority=Priority.BATCH))
    toy.drain()
    assert [chunk.request for chunk in toy.chunks if chunk.token is not None] == ["long", "short"]


def test_a_refilling_step_is_bounded_in_time():
    toy = Toy(limits(900, 8, context=600, step_tokens=256, wait=0.5))
    toy.add(request("a", range(500), 4))
    for _ in range(4):
        toy.step()
    toy.scheduler.rewind()
    toy.scheduler.cost = cost(StageCost(0.01, 0.01, 1e-5, 0.0))
    plans = list(toy.scheduler.refill([(0, 1)], None, set()))
    assert sum(plan.rows for plan in plans) == 502
    assert all(toy.scheduler.cost.wait(StepLoad.of_chunk(plan.chunks[0])) <= 1.0 for plan in plans)
    assert len(plans) > 8


# Streamed experts

STREAMED = StageCost(0.01, 0.001, 1e-6, 0.0005, StreamedExperts(2.0, 1 / 16))


@given(st.integers(1, 300))
def test_more_rows_read_more_experts_but_never_more_than_all(rows: int):
    load, before = StepLoad.of(0, rows, 0), StepLoad.of(0, rows - 1, 0)
    reading = cost(STREAMED).wait(load) - cost(REAL).wait(load)
    assert 2 * 2.0 * (1 - (15 / 16) ** rows) == pytest.approx(reading)  # a stage has two steps in flight
    assert cost(STREAMED).wait(load) > cost(STREAMED).wait(before)


def test_what_streams_is_learned_as_a_term_of_its_own():
    learner, real = cost(STREAMED), StageCost(0.01, 0.001, 1e-6, 0.0005, StreamedExperts(0.5, 1 / 16))
    for _ in range(60):
        for rows in (1, 64, 4, 256):
            load = StepLoad.of(0, rows, 1)
            assert real.experts is not None
            learner.learn(load, [trace(seconds(real, load) + real.experts.seconds * real.experts.touched(rows))])
    for rows in (1, 256):
        load = StepLoad.of(0, rows, 1)
        assert learner.wait(load) == pytest.approx(cost(real).wait(load), rel=0.5)


def test_a_prompt_takes_a_whole_pass_over_streamed_experts_and_no_part_of_one():
    assert cost(REAL).one_pass(256) == 0
    assert cost(STREAMED).one_pass(256) == cost(STREAMED).wait(StepLoad.of(0, 256, 1)) > 4
    learner = cost(STREAMED)
    for _ in range(20):
        learner.learn(StepLoad.of(0, 256, 1), [trace(2.3)])
    assert StepBudget(256, 256, learner, 0.5, True).prompt(0, 256, False, 1.0) == 256
    held = cost(REAL)
    held.learn(StepLoad.of(0, 256, 1), [trace(2.3)])
    assert StepBudget(256, 256, held, 0.5, True).prompt(0, 256, False, 1.0) < 128
