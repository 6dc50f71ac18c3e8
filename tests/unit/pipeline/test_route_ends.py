"""A route ends, is paused, or is filled anew: its requests go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import StageLost
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request
from shoal.scheduler.plan import Sampled, StepPlan, StepResult
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from tests.support.route import EPOCH, Route, collect, finish, over, play, turns
from tests.support.toy_stage import expected, limits, request


def test_the_end_of_the_last_stage_ends_the_route_and_no_request():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1], 9)
        stream = route.driver.submit(r)
        await turns()
        route.results.abort()
        with pytest.raises(StageLost):
            await running
        late = request("b", [1])
        assert await finish(Route(route.limits, route), stream, route.driver.submit(late)) == [expected(r, 0)[0], expected(late, 0)[0]]

    play(scenario, work=False)


def test_a_stage_that_failed_ends_the_route():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.results.send(Frame(FrameKind.ERROR, EPOCH, 0, messages.encode(messages.Error("out of luck", 1))))
        with pytest.raises(StageLost, match="stage 1: out of luck"):
            await running

    play(scenario, work=False)


@pytest.mark.parametrize(("kind", "step"), [(FrameKind.PING, 0), (FrameKind.RESULT, 99)])
def test_what_was_not_due_ends_the_route(kind: FrameKind, step: int):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.results.send(Frame(kind, EPOCH, step, messages.encode(StepResult(step, [], []))))
        with pytest.raises(StageLost):
            await running

    play(scenario, work=False)


def test_a_first_stage_that_speaks_ends_the_route():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.steps.send(Frame(FrameKind.ACK, EPOCH))
        with pytest.raises(StageLost, match="stage 0 sent"):
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


def test_a_result_that_comes_twice_counts_once():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1], 5)
        stream = route.driver.submit(r)
        for _ in range(5):
            result = await route.result()
            await route.answer(result)
            await route.answer(result)
        assert [c.token for c in await collect(stream)] == expected(r, 0)[0]

    play(scenario, work=False)


# Each route of a story: how many of its steps are answered before it ends, and how it does.
ENDS = ["die", "half", "cut", "pause", "error", "nonsense", "abort first"]
routes = st.tuples(st.integers(0, 12), st.sampled_from(ENDS), st.booleans(), st.integers(0, 9))


async def answer_some(route: Route, steps: int, noise: int) -> None:
    """Answers steps, some results twice and some also in the name of an older epoch, with another draw."""
    for i in range(steps):
        result = await route.result()
        wrong = [Sampled(s.sequence, (s.token + 1) % 23) for s in result.sampled]
        if noise & 1:
            await route.answer(StepResult(result.step, wrong, []), route.epoch - 1)
        await route.answer(result)
        if noise & 2 or i % 4 == noise:
            await route.answer(StepResult(result.step, wrong, []))


async def end(route: Route, how: str) -> None:
    match how:
        case "half":  # the step is carried out, the result is lost
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await route.result()
            route.die()
        case "cut":
            route.driver.cut("told to")
        case "pause":
            route.driver.pause()
            await route.work()
        case "error":
            await route.results.send(Frame(FrameKind.ERROR, route.epoch, -1 % 2**64, messages.encode(messages.Error("no", 0))))
        case "nonsense":
            await route.results.send(Frame(FrameKind.ACK, route.epoch))
        case "abort first":
            route.steps.abort()
        case _:
            route.die()


@settings(max_examples=60)
@given(
    st.lists(routes, max_size=5),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 2)), min_size=1, max_size=5),
    st.integers(4, 16),
    st.integers(1, 3),
)
def test_streams_get_their_tokens_whatever_becomes_of_their_routes(
    story: list[tuple[int, str, bool, int]], sizes: list[tuple[int, int, int]], blocks: int, depth: int
):
    bounds = limits(blocks=blocks, depth=depth)
    requests = [
        request(f"r{i}", range(1, min(p, bounds.longest - 1) + 1), max(min(t, bounds.longest - p), 1), n=n, seed=i)
        for i, (p, t, n) in enumerate(sizes)
    ]

    async def go() -> None:
        route = Route(bounds)
        driver = route.driver
        streams = [asyncio.ensure_future(collect(driver.submit(r))) for r in requests]
        for steps, how, kept, noise in story:
            running = asyncio.ensure_future(route.run())
            await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):  # there may be fewer steps than that
                    await answer_some(route, steps, noise)
            await end(route, how)
            await asyncio.wait({running}, timeout=5)
            assert running.done(), f"{how} does not end a route"
            assert isinstance(running.exception(), StageLost | None)
            driver.scheduler.check()
            route = Route(bounds, route, kept=kept and bool(route.filled))
        driving, working = asyncio.ensure_future(route.run()), asyncio.ensure_future(route.work())
        async with asyncio.timeout(5):
            got = await asyncio.gather(*streams)
        for r, chunks in zip(requests, got, strict=True):
            for choice in range(r.n):
                mine = [c for c in chunks if c.choice == choice]
                assert ([c.token for c in mine], mine[-1].finish) == expected(r, choice)
        await turns()
        assert driver.requests == driver.scheduler.pool.used == len(route.stage) == 0
        driver.close(StageLost("over"))
        await asyncio.gather(driving, working, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


def test_a_pause_lets_what_is_under_way_come_to_its_end():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1], 9)
        stream = route.driver.submit(r)
        result = await route.result()
        route.driver.pause()
        await turns()
        assert not running.done()
        await route.answer(result)
        await running
        assert await finish(Route(route.limits, route, kept=True), stream) == [expected(r, 0)[0]]

    play(scenario, work=False)


def test_a_pause_of_an_idle_route_ends_it_at_once():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await turns()
        route.driver.pause()
        await running

    play(scenario)


async def lost_halfway(route: Route, running: asyncio.Task[None]) -> tuple[Request, TokenStream, Route]:
    """A request whose route died after a few tokens, its stream, and the next route."""
    r = request("a", range(1, 9), 9)
    stream = route.driver.submit(r)
    for _ in range(4):
        await route.one()
    await turns()
    route.die()
    return r, stream, await over(route, running)


def test_a_pause_while_layers_are_filled_waits_for_that():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r, stream, second = await lost_halfway(route, running)
        driving = asyncio.ensure_future(second.run())
        result = await second.result()
        second.driver.pause()
        await turns()
        assert not driving.done() and not second.filled
        await second.answer(result)
        working = asyncio.ensure_future(second.work())
        await driving
        await working
        assert second.filled
        assert await finish(Route(route.limits, second, kept=True), stream) == [expected(r, 0)[0]]

    play(scenario, work=False)


def test_what_a_journal_lacks_is_filled_from_the_tokens():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r, stream, second = await lost_halfway(route, running)
        second.spans = [(2, 3)]
        driving = asyncio.ensure_future(second.run())
        plans: list[StepPlan] = []
        while not second.filled:
            step = messages.decode_step((await second.steps.receive()).meta)
            plans.append(messages.decode_plan(step.plan))
            result = second.stage.run(plans[-1])
            lacking = [c.sequence for c in plans[-1].chunks] if plans[-1].spans[0][0] else []
            await second.answer(StepResult(result.step, [], [], lacking))
            await turns()
        assert [plan.spans for plan in plans][:1] + [plan.spans for plan in plans][-1:] == [[(2, 3)], [(0, 3)]]
        assert second.filled == [sum(plan.rows for plan in plans)]
        second.driver.cut("on to the next")
        await asyncio.wait({driving})
        assert await finish(Route(route.limits, second, kept=True), stream) == [expected(r, 0)[0]]

    play(scenario, work=False)


def test_layers_that_cannot_be_filled_from_the_tokens_end_the_route():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", range(1, 9), 9))
        await route.one()
        await turns()
        route.die()
        second = await over(route, running)
        driving = asyncio.ensure_future(second.run())
        result = await second.result()
        await second.answer(StepResult(result.step, [], [], [0]))
        with pytest.raises(StageLost, match="from the tokens"):
            await driving

    play(scenario, work=False)


def test_a_smaller_pool_ends_what_cannot_run_in_it_and_nothing_else():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        small, large = request("small", [1, 2], 6), request("large", range(1, 20), 20)
        streams = [route.driver.submit(r) for r in (small, large)]
        await turns()
        route.die()
        await asyncio.wait({running})
        bounds = limits(blocks=4, depth=2)
        route.driver.restart(bounds)
        with pytest.raises(StageLost, match="at most"):
            await collect(streams[1])
        assert await finish(Route(bounds, route), streams[0]) == [expected(small, 0)[0]]

    play(scenario)


def test_a_route_without_results_is_seen_to_stall():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await turns()
        assert route.driver.stalled() == 0
        route.driver.submit(request("a", [1], 2))
        await turns()
        await asyncio.sleep(0.01)
        assert route.driver.stalled() >= 0.01
        await route.one()
        await turns()
        assert route.driver.stalled() < 0.01

    play(scenario, work=False)
