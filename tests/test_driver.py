"""The driver keeps the pipe full, hands tokens to whom they belong, and tells everyone when the route breaks."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest, StageLost
from shoal.pipeline.timing import StepTiming, Timings
from shoal.scheduler.plan import Sampled, StageTrace, StepResult
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind
from tests.support.route import EPOCH, Route, collect, play, turns
from tests.support.toy_stage import expected, limits, request


def test_a_request_gets_its_tokens():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1, 2, 3], 6)
        chunks = await collect(route.driver.submit(r))
        assert [c.token for c in chunks] == expected(r, 0)[0]
        assert chunks[-1].finish is not None
        assert len(route.timings) >= 6

    play(scenario)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(5, 16))
def test_requests_at_once_get_what_each_gets_alone(depth: int, sizes: list[int], blocks: int):
    requests = [request(f"r{i}", range(1, size + 1), size, n=1 + i % 2, seed=i) for i, size in enumerate(sizes)]

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        got = await asyncio.gather(*(collect(route.driver.submit(r)) for r in requests))
        for r, chunks in zip(requests, got, strict=True):
            for choice in range(r.n):
                assert [c.token for c in chunks if c.choice == choice] == expected(r, choice)[0]
        route.driver.scheduler.check()

    play(scenario, limits(blocks=blocks, depth=depth))


def test_the_pipe_is_kept_full_and_no_fuller():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", range(1, 60), 2))
        await turns()
        assert route.driver.scheduler.in_flight == route.limits.depth + 1

    play(scenario, limits(depth=3, step_tokens=24), work=False)


def test_closing_a_stream_frees_its_blocks():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 50))
        await anext(stream)
        stream.close()
        stream.close()
        await turns()
        assert route.driver.scheduler.pool.used == len(route.stage) == 0

    play(scenario)


def test_a_choice_ended_from_this_side_leaves_the_other():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1], 8, n=2)
        stream = route.driver.submit(r)
        first = await anext(stream)
        stream.end_choice(first.choice)
        rest = [c.token for c in await collect(stream) if c.choice != first.choice]
        assert rest == expected(r, 1 - first.choice)[0]

    play(scenario)


def test_a_refused_request_leaves_nothing():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        with pytest.raises(InvalidRequest):
            route.driver.submit(request("a", []))
        route.driver.submit(request("a", [1]))

    play(scenario)


def test_the_end_of_the_last_stage_is_told_to_everyone():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 9))
        await turns()
        route.results.abort()
        with pytest.raises(StageLost):
            await collect(stream)
        with pytest.raises(StageLost):
            await running
        with pytest.raises(StageLost):
            route.driver.submit(request("b", [1]))

    play(scenario, work=False)


def test_a_stage_that_failed_ends_the_route():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.results.send(Frame(Kind.ERROR, EPOCH, 0, messages.encode(messages.Error("out of luck", 1))))
        with pytest.raises(StageLost, match="stage 1: out of luck"):
            await running

    play(scenario, work=False)


@pytest.mark.parametrize(("kind", "step"), [(Kind.PING, 0), (Kind.RESULT, 99)])
def test_what_was_not_due_ends_the_route(kind: Kind, step: int):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.results.send(Frame(kind, EPOCH, step, messages.encode(StepResult(step, [], []))))
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_results_of_another_epoch_are_dropped():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1], 1)
        stream = route.driver.submit(r)
        await turns()
        await route.answer(StepResult(0, [Sampled(0, 22)], []), epoch=EPOCH - 1)
        await turns()
        await route.one()
        assert [c.token for c in await collect(stream)] == expected(r, 0)[0]

    play(scenario, work=False)


# What steps cost


def timing(rows: int = 1, sampled: int = 1, flight: float = 10.0, stages: int = 2) -> StepTiming:
    return StepTiming(rows, sampled, 1.0, 1.0, 1.0, flight, 1.0, (StageTrace(0.5, 0.5, 2.0, 0.5, 0.5),) * stages)


def test_a_steps_time_adds_up():
    one = timing()
    assert (one.in_stages, one.hops) == (8.0, 2.0)
    assert one.overhead == (4 + 10 - 6) / 3
    assert timing(flight=5.0).hops == 0


def test_a_summary_is_of_steps_that_sampled():
    timings = Timings(keep=3)
    assert timings.summary() == {}
    for rows in (1, 1, 4, 4):
        timings.add(timing(rows))
    timings.add(timing(9, sampled=0))
    assert (timings.summary()["steps"], timings.summary(rows=4)["rows"]) == (2, 4)
    timings.clear()
    assert timings.summary() == {}
