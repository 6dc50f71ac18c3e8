"""Servers that are upstreams of each other: what one has, the other offers, no longer than that one has it, and nothing goes in a circle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import uvloop

from tests.support.cluster import free_port
from tests.support.engine import FakeEngine, says
from tests.support.forwarding import CHAT, HI, Gateway, gateway
from tests.support.http import eventually


def both(work: Callable[[Gateway, Gateway], Awaitable[None]], one: FakeEngine | None, two: FakeEngine | None) -> None:
    """one, two: their models; None: that server has none."""

    async def go() -> None:
        ports = free_port(), free_port()
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with (
            asyncio.timeout(60),
            gateway(urls[1], own=one is not None, engine=one, port=ports[0], ready=False) as first,
            gateway(urls[0], own=two is not None, engine=two, port=ports[1], balance="round-robin") as second,
        ):
            await first.until(lambda state: not state)
            await work(first, second)

    uvloop.run(go())


async def said(gate: Gateway) -> str:
    answer = await gate.http.post(CHAT, json={"model": "fake", "messages": HI})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_a_model_of_one_is_offered_by_both_and_by_none_when_it_is_gone() -> None:
    async def work(first: Gateway, second: Gateway) -> None:
        await eventually(lambda: second.upstreams.known("fake"))
        assert not first.upstreams.known("fake"), "it is not offered what it has itself"
        assert await said(second) == "Hello"
        first.engines.remove("fake")
        await eventually(lambda: not second.upstreams.known("fake") and not first.upstreams.known("fake"))
        for gate in (first, second):
            assert (await gate.chat("fake")).status_code == 404

    both(work, FakeEngine(), None)


def test_a_model_of_both_is_served_by_both_and_never_in_a_circle() -> None:
    one, two = FakeEngine(says("one")), FakeEngine(says("two"))

    async def work(first: Gateway, second: Gateway) -> None:
        await eventually(lambda: first.upstreams.known("fake") and second.upstreams.known("fake"))
        assert sorted([await said(second) for _ in range(8)]) == ["one"] * 4 + ["two"] * 4
        assert len(one.streams) == len(two.streams) == 4
        assert {ending for _, ending, _, _ in [*one.asked_elsewhere, *two.asked_elsewhere]} == {"served"}
        two.state = "waiting for nodes"
        assert {await said(second) for _ in range(3)} == {"one"}

    both(work, one, two)


def test_neither_has_it_and_both_say_so() -> None:
    async def work(first: Gateway, second: Gateway) -> None:
        for gate in (first, second):
            assert (await gate.chat("fake")).status_code == 404

    both(work, None, None)
