"""The driver keeps the pipe full, hands tokens to whom they belong, and goes on where a route ended."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ClusterError, InvalidRequest, NotReady, StageLost, StepFailed
from shoal.pipeline.timing import StepTiming, Timings
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request
from shoal.scheduler.plan import PromptOutputs, Sampled, StageTrace, StepPlan, StepResult
from shoal.wire import messages
from shoal.wire.frame import Frame, Kind
from tests.support.route import EPOCH, Route, collect, play, turns
from tests.support.toy_stage import expected, expected_embedding, expected_scores, limits, request


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


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_said_of_a_prompt_reaches_its_stream_over_two_routes(kept: bool):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        asked = [
            request("a", range(1, 41), 3, scores=1),
            request("b", range(1, 41), 0, embed=True),
            request("c", range(1, 41), 0, scores=0),
        ]
        reading = [asyncio.ensure_future(collect(route.driver.submit(r))) for r in asked]
        while not any(0 < s.examined < 40 for s in route.driver.scheduler._sequences.values() if s.request.embed):
            await turns(1)
        route.die()
        with contextlib.suppress(StageLost):
            await running
        second = Route(route.limits, after=route, kept=kept)
        tasks = [asyncio.ensure_future(second.run()), asyncio.ensure_future(second.work())]
        for r, chunks in zip(asked, await asyncio.gather(*reading), strict=True):
            assert [score for chunk in chunks for score in chunk.scores] == expected_scores(r)
            assert b"".join(chunk.embedding for chunk in chunks) == expected_embedding(r)
            assert [c.token for c in chunks if c.token is not None] == expected(r, 0)[0]
            assert [c.finish for c in chunks if c.finish is not None] == [expected(r, 0)[1]]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    play(scenario, limits(blocks=64, step_tokens=12))


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


async def ends_alone(
    route: Route, running: asyncio.Task[None], bad: TokenStream, kind: type[Exception], why: str, good: TokenStream
) -> None:
    """One request ends with an error, and another one says all that it would have said."""
    working = asyncio.ensure_future(route.work())
    with pytest.raises(kind, match=f"^{why}$"):
        await collect(bad)
    assert [c.token for c in await collect(good) if c.token is not None] == expected(request("b", [2], 6), 0)[0]
    assert not running.done()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


@pytest.mark.parametrize(
    ("sampled", "kind"),
    [(Sampled(0, -1, fault="no"), InvalidRequest), (Sampled(0, -1, fault="no", ours=True), ClusterError)],
    ids=["the request's", "ours"],
)
def test_a_draw_that_cannot_be_ends_its_request_alone(sampled: Sampled, kind: type[Exception]):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        bad, good = route.driver.submit(request("a", [1], 6)), route.driver.submit(request("b", [2], 6))
        result = await route.result()
        assert {s.sequence for s in result.sampled} == {0, 1}
        result.sampled[:] = [sampled, *(s for s in result.sampled if s.sequence != 0)]
        await route.answer(result)
        await ends_alone(route, running, bad, kind, "no", good)

    play(scenario, limits(depth=1), work=False)


def test_a_prompt_that_cannot_be_examined_ends_its_request_alone():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        bad = route.driver.submit(msgspec.structs.replace(request("a", [1, 2, 3], 6), prompt_logprobs=0))
        good = route.driver.submit(request("b", [2], 6))
        result = await route.result()
        assert [e.sequence for e in result.examined] == [0]
        result.examined[:] = [PromptOutputs(0, [], fault="unsound")]
        await route.answer(result)
        await ends_alone(route, running, bad, ClusterError, "unsound", good)

    play(scenario, limits(depth=1), work=False)


def test_a_refused_request_leaves_nothing():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        with pytest.raises(InvalidRequest):
            route.driver.submit(request("a", []))
        route.driver.submit(request("a", [1]))

    play(scenario)


# A route ends, its requests go on


async def over(route: Route, running: asyncio.Task[None], *, kept: bool = False) -> Route:
    """The next route, once this one has ended; it works."""
    await asyncio.wait({running})
    return Route(route.limits, route, kept=kept)


async def finish(route: Route, *streams: TokenStream) -> list[list[int | None]]:
    """What is left of the streams, over a route that holds."""
    driving, working = asyncio.ensure_future(route.run()), asyncio.ensure_future(route.work())
    try:
        return [[chunk.token for chunk in chunks] for chunks in await asyncio.gather(*(collect(stream) for stream in streams))]
    finally:
        route.driver.scheduler.check()
        route.driver.close(StageLost("the test is over"))
        await asyncio.gather(driving, working, return_exceptions=True)


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


def test_a_first_stage_that_speaks_ends_the_route():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await route.steps.send(Frame(Kind.ACK, EPOCH))
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
            await route.results.send(Frame(Kind.ERROR, route.epoch, -1 % 2**64, messages.encode(messages.Error("no", 0))))
        case "nonsense":
            await route.results.send(Frame(Kind.ACK, route.epoch))
        case "abort first":
            route.steps.abort()
        case _:
            route.die()


@settings(max_examples=60, deadline=None)
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


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("sound", [0, 4])
def test_a_request_that_no_stage_can_run_ends_after_three_tries_and_others_complete(slots: int, depth: int, sound: int):
    """sound: so many steps with it go well, so that later it is in the refill of others, too."""
    good, bad, left = request("good", [1, 2], 9), request("bad", [7, 7], 9), [sound]

    async def work(route: Route) -> None:
        """Runs steps as long as they do not touch the bad request, the second one."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                frame = await route.steps.receive()
                plan = messages.decode_plan(messages.decode_step(frame.meta).plan)
                poisoned = any(chunk.sequence == 1 for chunk in plan.chunks)
                left[0] -= poisoned
                if poisoned and left[0] < 0:
                    await route.results.send(Frame(Kind.ERROR, route.epoch, plan.step, messages.encode(messages.Error("poison", 0))))
                    return
                await route.answer(route.stage.run(plan))

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        healthy, poisoned = (asyncio.ensure_future(collect(route.driver.submit(r))) for r in (good, bad))
        for _ in range(3):
            await work(route)
            with pytest.raises(StepFailed):
                await running
            route = Route(route.limits, route)
            running = asyncio.ensure_future(route.run())
        working = asyncio.ensure_future(work(route))
        with pytest.raises(StageLost, match="could not run this request"):
            await poisoned
        assert [c.token for c in await healthy] == expected(good, 0)[0]
        await turns()
        route.driver.close(StageLost("over"))
        await asyncio.gather(running, working, return_exceptions=True)

    play(scenario, limits(depth=depth, step_tokens=8, slots=slots), work=False)


def test_a_draw_that_cannot_be_made_ends_its_request_alone():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        good, bad = request("good", [1, 2], 9), request("bad", [3, 4], 9, n=2)
        streams = [route.driver.submit(r) for r in (good, bad)]
        ended, working = asyncio.ensure_future(collect(streams[1])), asyncio.ensure_future(collect(streams[0]))
        for _ in range(30):
            if working.done():
                break
            result = await route.result()
            drawn = [Sampled(s.sequence, -1, fault="no such grammar") if s.sequence == 2 else s for s in result.sampled]
            await route.answer(StepResult(result.step, drawn, []))
            await turns()
        with pytest.raises(InvalidRequest, match="no such grammar"):
            await ended
        assert [c.token for c in await working] == expected(good, 0)[0]
        assert not running.done()
        assert route.driver.requests == 0
        route.driver.scheduler.check()

    play(scenario, work=False)


def test_a_bug_while_steps_are_made_ends_the_route_and_is_not_swallowed(monkeypatch: pytest.MonkeyPatch):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await turns()

        def schedule() -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(route.driver.scheduler, "schedule", schedule)
        route.driver.submit(request("a", [1]))
        with pytest.raises(KeyError):
            await running

    play(scenario)


def test_ending_all_ends_those_that_wait_and_those_that_run():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        streams = [route.driver.submit(request(name, [1], 50)) for name in "abc"]
        await anext(streams[0])
        route.driver.end_all(StageLost("no nodes"))
        for stream in streams:
            with pytest.raises(StageLost, match="no nodes"):
                await collect(stream)
        assert route.driver.requests == 0
        again = request("d", [1], 3)
        assert [c.token for c in await collect(route.driver.submit(again))] == expected(again, 0)[0]
        await turns()
        assert len(route.stage) == 0

    play(scenario, limits(slots=2))


def test_a_closed_driver_takes_no_requests():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 50))
        await turns()
        route.driver.close(NotReady("shutting down"))
        with pytest.raises(NotReady):
            await collect(stream)
        with pytest.raises(NotReady):
            route.driver.submit(request("b", [1]))
        with pytest.raises(StageLost):
            await running

    play(scenario)


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
