"""Requests that go from one driver to another, as where a copy of a model is lost and another one serves."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import InvalidRequest, NotReady
from shoal.node.requests import Requests
from shoal.pipeline.driver import Driver
from shoal.pipeline.token_stream import TokenStream
from shoal.request import Request, RequestId
from shoal.scheduler.limits import Limits
from shoal.scheduler.scheduler import Scheduler
from tests.support.route import Route, collect, finish, play, turns
from tests.support.toy_stage import limits, request


def driver(bounds: Limits | None = None) -> Driver:
    return Driver(Scheduler(bounds or limits()), lambda timing: None)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_at_two_drivers_what_it_says_at_one(n: int) -> None:
    wanted: list[list[tuple[int, int | None]]] = []

    async def whole(route: Route, running: asyncio.Task[None]) -> None:
        wanted.append([(c.choice, c.token) for c in await collect(route.driver.submit(request("a", [1, 2, 3], 9, n=n)))])

    async def in_parts(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1, 2, 3], 9, n=n))
        said = [await anext(stream) for _ in range(4)]
        route.die()
        await asyncio.wait({running})
        assert route.driver.hand_over() == [stream]
        assert route.driver.requests == 0 and route.driver.scheduler.waiting == route.driver.scheduler.running == 0
        route.driver.scheduler.check()
        assert not route.driver.scheduler.pool.used
        other = Route(limits(depth=2))
        other.driver.take_up(stream)
        driving, working = asyncio.ensure_future(other.run()), asyncio.ensure_future(other.work())
        said += await collect(stream)
        route.driver.close(NotReady("the first one is gone"))
        other.driver.close(NotReady("the test is over"))
        await asyncio.gather(driving, working, return_exceptions=True)
        for choice in range(n):
            mine = [token for at, token in wanted[0] if at == choice]
            assert [c.token for c in said if c.choice == choice] == mine, "each token once"

    play(whole)
    play(in_parts)


def test_a_choice_that_has_ended_is_not_begun_anew() -> None:
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        stream = route.driver.submit(request("a", [1], 9, n=2))
        first = await anext(stream)
        stream.end_choice(first.choice)
        route.die()
        await asyncio.wait({running})
        (given,) = route.driver.hand_over()
        assert given.left.keys() == {1 - first.choice}

    play(scenario)


def test_a_stream_that_was_given_up_is_closed_at_its_new_driver() -> None:
    async def go() -> None:
        one, other = driver(), driver()
        stream = one.submit(request("a", [1], 9))
        one.hand_over()
        other.take_up(stream)
        assert (one.requests, other.requests) == (0, 1)
        stream.close()
        assert other.requests == 0 and other.scheduler.waiting == 0

    asyncio.run(go())


def test_what_was_said_of_a_prompt_is_not_said_twice() -> None:
    """Such a request stays; one of which nothing was said yet goes."""

    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        told = Request(RequestId("told"), [1, 2, 3], 9, prompt_logprobs=0)
        stream = route.driver.submit(told)
        await anext(stream)
        await turns()
        route.die()
        await asyncio.wait({running})
        new = route.driver.submit(Request(RequestId("new"), [1, 2, 3], 9, prompt_logprobs=0))
        assert route.driver.hand_over() == [new]
        assert route.driver.requests == 1

    play(scenario)


def test_a_request_that_has_no_room_elsewhere_ends_with_the_reason() -> None:
    async def go() -> None:
        one, small = driver(), driver(limits(blocks=2))
        stream = one.submit(request("a", [*range(1, 20)], 40))
        one.hand_over()
        small.take_up(stream)
        with pytest.raises(InvalidRequest):
            await anext(stream)
        assert small.requests == 0

    asyncio.run(go())


def test_requests_that_wait_for_the_first_route_are_given_up_too() -> None:
    async def go() -> None:
        waiting = Requests(lambda scheduler: Driver(scheduler, lambda timing: None))
        stream = TokenStream(request("a", [1], 9))
        waiting.take_up(stream)
        assert len(waiting) == 1
        assert waiting.hand_over() == [stream] and len(waiting) == 0
        waiting.take_up(stream)
        driver = waiting.fitted(limits())
        assert waiting.hand_over() == [stream] and driver.requests == len(waiting) == 0

    asyncio.run(go())


def test_a_driver_goes_on_after_it_has_handed_over() -> None:
    async def scenario(route: Route, running: asyncio.Task[None]) -> None:
        route.driver.submit(request("a", [1, 2], 9))
        await turns(20)
        route.die()
        await asyncio.wait({running})
        route.driver.hand_over()
        after = Route(route.limits, route)
        stream = after.driver.submit(request("a", [1, 2], 3))  # the same name is free again
        assert len((await finish(after, stream))[0]) == 3

    play(scenario)
