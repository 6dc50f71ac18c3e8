"""The driver keeps the pipe full and hands tokens to whom they belong."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ClusterError, InvalidRequest, NotReady, StageLost, StepFailed
from shoal.pipeline.route import DrivenRoute
from shoal.pipeline.token_stream import TokenStream
from shoal.scheduler.limits import Batching
from shoal.scheduler.plan import PromptOutputs, Sampled, StepResult
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from tests.support.route import Route, collect, finish, over, play, turns
from tests.support.toy_stage import expected, expected_embedding, expected_scores, limits, request


def test_a_request_gets_its_tokens():
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        r = request("a", [1, 2, 3], 6)
        chunks = await collect(route.driver.submit(r))
        assert [c.token for c in chunks] == expected(r, 0)[0]
        assert chunks[-1].finish is not None
        assert len(route.timings) >= 6

    play(scenario)


@settings(max_examples=20)
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
                    await route.results.send(Frame(FrameKind.ERROR, route.epoch, plan.step, messages.encode(messages.Error("poison", 0))))
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

        def schedule(now: float) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(route.driver.scheduler, "schedule", schedule)
        route.driver.submit(request("a", [1]))
        with pytest.raises(KeyError):
            await running

    play(scenario)


def test_a_request_for_which_no_others_come_runs_when_its_wait_is_over():
    """Nothing else wakes the driver."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await turns()
        alone = await collect(route.driver.submit(request("a", [1])))
        assert [chunk.token for chunk in alone] == expected(request("a", [1]), 0)[0]
        both = [route.driver.submit(request(name, [2, 3], 2)) for name in "bc"]
        await turns()
        assert {s.request.id for s in route.driver.scheduler.slots.waiting} == {"b", "c"}
        third = route.driver.submit(request("d", [3], 2))
        for stream in (*both, third):
            assert len(await collect(stream)) == 2
        assert max(timing.rows for timing in route.timings) >= 3, "they ran together"

    play(scenario, limits(depth=2, batching=Batching(3, 0.05)))


def test_what_was_gathered_for_long_while_a_route_is_being_left_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch):
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        await turns()
        streams = [route.driver.submit(request(name, [1], 2)) for name in "ab"]
        await turns()
        assert route.driver.scheduler.in_flight == 1
        route.driver.pause()
        looks, fill = list[DrivenRoute](), route.driver._fill

        async def counted(driven: DrivenRoute) -> None:
            looks.append(driven)
            await fill(driven)

        monkeypatch.setattr(route.driver, "_fill", counted)
        streams.append(route.driver.submit(request("late", [1], 2)))
        await asyncio.sleep(0.1)
        assert 1 <= len(looks) < 9 and route.driver.scheduler.due is not None
        await route.one()
        after = await over(route, running, kept=True)
        assert [len(tokens) for tokens in await finish(after, *streams)] == [2, 2, 2]

    play(scenario, limits(depth=2, batching=Batching(2, 0.02)), work=False)


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
