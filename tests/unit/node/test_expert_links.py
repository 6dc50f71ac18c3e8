"""A stage gets every expert's sums once, whatever its workers answer, and leaves nothing behind when a step ends early."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from shoal.errors import ClusterError, LocalProtocolError, RemoteProtocolError
from shoal.executor.base import Partial, Send
from shoal.node.expert_holders import Holders
from shoal.node.expert_links import ExpertLinks
from shoal.transport.memory import MemoryStream, pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from shoal.wire.routed import Routed, Sums, encode_sums
from tests.support.routed_rows import routed_of

ALL = frozenset(range(4))
ROUTED = routed_of([{0: 0.5, 1: 1.0}, {2: 1.0}, {1: 0.25, 3: 1.0}], layer=6)


def sums_of(routed: Routed) -> Sums:
    """Different for each of its rows, as the experts are."""
    return np.array([[routed.q[row, 0] + sum(routed.experts.tolist())] * routed.hidden for row in range(routed.rows)], np.float64)


class Hand:
    """A worker whose answers a test gives."""

    def __init__(self) -> None:
        self.tries, self.refusing = 0, False
        self.streams: list[MemoryStream] = []
        self.asked: list[tuple[int, Routed]] = []
        """Numbers, and what was asked."""

    async def connect(self) -> MemoryStream:
        self.tries += 1
        if self.refusing:
            raise ConnectionError("nobody is there")
        mine, its = pair()
        self.streams.append(mine)
        return its

    async def take(self, count: int = 1) -> None:
        for _ in range(count):
            frame = await self.streams[-1].receive()
            assert frame.kind is FrameKind.EXPERTS and frame.epoch == 8
            self.asked.append((frame.step, Routed.decode(frame.meta, frame.body)))

    async def say(self, kind: FrameKind, number: int, meta: Any = b"", body: Any = b"") -> None:
        await self.streams[-1].send(Frame(kind, 8, number, meta, body))

    async def answer(self, at: int = -1, add: float = 0.0) -> None:
        number, routed = self.asked[at]
        await self.say(FrameKind.EXPERTS, number, *encode_sums(sums_of(routed) + add))

    async def refuse(self, why: str = "not here") -> None:
        await self.say(FrameKind.ERROR, self.asked[-1][0], messages.encode(messages.Error(why, -1)))


class Company:
    """Links to workers, each of which holds some experts. Time stands still unless a test turns it on."""

    def __init__(self, held: dict[str, frozenset[int]], patience: float, degrade: bool = False) -> None:
        self.now = 0.0
        self.hands = {name: Hand() for name in held}
        holders = Holders({name: {ROUTED.layer: experts} for name, experts in held.items()})
        self.links = ExpertLinks(holders, holders.experts, self._connect, 8, lambda: self.now, Random(0), patience, degrade=degrade)

    async def _connect(self, worker: str) -> MemoryStream:
        return await self.hands[worker].connect()

    def __getitem__(self, worker: str) -> Hand:
        return self.hands[worker]

    async def ask(self, spare: frozenset[int] = frozenset()) -> asyncio.Task[list[Partial]]:
        """The step now waits for what it has sent."""
        await self.links.send(Send(ROUTED, np.arange(10, 13, dtype=np.int32), spare))
        collecting = asyncio.ensure_future(self.links.collect())
        await quiet()
        return collecting

    def nothing_is_left(self) -> None:
        assert not self.links._answers and not self.links._step and not self.links._sending
        assert all(self.links.holders[name].outstanding == 0 for name in self.hands)


async def quiet() -> None:
    """Until nothing goes on by itself."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plays a scenario with links that are open. Workers that are lost are asked again at once."""
    monkeypatch.setattr("shoal.node.expert_links._FIRST_DELAY", 0.0)
    monkeypatch.setattr("shoal.node.expert_links._MOST_DELAY", 0.0)
    unhandled: list[dict[str, Any]] = []

    def play(scenario: Callable[[Company], Awaitable[None]], patience: float = 1e6, degrade: bool = False, **held: frozenset[int]) -> None:
        async def whole() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
            company = Company(held, patience, degrade)
            async with asyncio.timeout(20):
                await company.links.open()
                try:
                    await scenario(company)
                finally:
                    await company.links.close()
                await quiet()
                assert len(asyncio.all_tasks()) == 1
                company.nothing_is_left()
            gc.collect()
            await asyncio.sleep(0)

        asyncio.run(whole())
        assert not unhandled

    return play


def whole(parts: list[Partial], add: float = 0.0) -> None:
    """Asserts that one worker answered it all."""
    assert len(parts) == 1
    assert parts[0].experts.tolist() == [0, 1, 2, 3] and parts[0].rows.tolist() == [10, 11, 12]
    assert np.array_equal(parts[0].sums, sums_of(ROUTED) + add)


def test_a_step_gets_the_sums_of_all_workers_that_it_needs(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        for name in "ba":
            await company[name].take()
            await company[name].answer()
        parts = {tuple(part.experts.tolist()): part for part in await collecting}
        assert {experts: part.rows.tolist() for experts, part in parts.items()} == {(0, 1): [10, 12], (2, 3): [11, 12]}
        for name, experts in (("a", (0, 1)), ("b", (2, 3))):
            assert np.array_equal(parts[experts].sums, sums_of(company[name].asked[0][1]))
        assert company.links.tally.frames == 2 and not company.links.tally.hedged and not company.links.tally.repeated_frames

    play(scenario, a=frozenset({0, 1}), b=frozenset({2, 3}))


def test_a_step_that_sent_nothing_gets_nothing(play: Any) -> None:
    async def scenario(company: Company) -> None:
        assert await company.links.collect() == []

    play(scenario, a=ALL)


def test_an_answer_that_comes_twice_counts_once(play: Any) -> None:
    async def scenario(company: Company) -> None:
        for _ in range(3):
            collecting = await company.ask()
            await company["a"].take()
            for _ in range(3):
                await company["a"].answer()
            await company["a"].refuse()  # and it cannot take back what it said
            whole(await collecting)
            await quiet()
        assert company["a"].tries == 1 and company.links.holders["a"].held[ROUTED.layer] == ALL
        assert len(company.links.holders["a"].seconds) == 3

    play(scenario, a=ALL)


def test_answers_to_what_was_not_asked_are_ignored(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["b"].take()
        number, _ = company["b"].asked[0]
        for wrong in (0, number + 1, 2**64 - 1):
            await company["b"].say(FrameKind.EXPERTS, wrong, *encode_sums(sums_of(ROUTED) + 1))
            await company["b"].say(FrameKind.ERROR, wrong, b"no message")
            await company["b"].say(FrameKind.PING, wrong)
        await company["a"].say(FrameKind.EXPERTS, number, *encode_sums(sums_of(ROUTED) + 2))  # which was asked of the other
        await quiet()
        assert not collecting.done()
        await company["b"].answer()
        whole(await collecting)

    play(scenario, a=ALL, b=ALL)


async def late(company: Company) -> asyncio.Task[list[Partial]]:
    """A step that asked both: first b, and then a, since b is late."""
    collecting = await company.ask()
    for name in "ba":
        await company[name].take()
    return collecting


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have not answered yet are late at once."""
    monkeypatch.setattr("shoal.node.expert_links._DEADLINE", 0.0)


@pytest.mark.usefixtures("hasty")
def test_of_two_that_were_asked_the_first_answer_counts(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await late(company)
        await company["a"].answer(add=5)
        whole(await collecting, add=5)
        assert company.links.tally.hedged == 1 and not company.links.tally.repeated_frames
        await company["b"].answer(add=7)
        await quiet()
        assert company["b"].tries == 1 and not company.links.holders["b"].fenced

    play(scenario, a=ALL, b=ALL)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("first", ["a", "b"])
def test_both_answers_may_come_at_once(play: Any, first: str) -> None:
    async def scenario(company: Company) -> None:
        collecting = await late(company)
        for name in sorted(company.hands, reverse=first == "b"):
            await company[name].answer()
        whole(await collecting)
        await quiet()
        assert [hand.tries for hand in company.hands.values()] == [1, 1]
        assert not any(company.links.holders[name].abandoned for name in company.hands)

    play(scenario, a=ALL, b=ALL)


@pytest.mark.usefixtures("hasty")
def test_one_that_was_late_is_not_asked_before_it_has_answered(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(company: Company) -> None:
        collecting = await late(company)
        await company["a"].answer()
        whole(await collecting)
        monkeypatch.setattr("shoal.node.expert_links._DEADLINE", 1e6)
        for _ in range(3):
            collecting = await company.ask()
            await company["a"].take()
            await company["a"].answer()
            whole(await collecting)
        assert company.links.tally.frames == 5
        await company["b"].answer()
        await quiet()
        collecting = await company.ask()
        await company["b"].take()
        await company["b"].answer()
        whole(await collecting)

    play(scenario, a=ALL, b=ALL)


@pytest.mark.usefixtures("hasty")
def test_one_that_takes_nothing_holds_no_step_up(play: Any) -> None:
    """As a process that is stopped, once its connection's buffers are full."""

    async def scenario(company: Company) -> None:
        never = asyncio.Event()
        stream: Any = company.links._streams["b"]

        async def send(frame: Frame) -> None:
            await never.wait()

        stream.send, stream.offer = send, lambda frame: False
        collecting = await company.ask()
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)
        assert len(company.links._sending) == 1

    play(scenario, a=ALL, b=ALL)


@pytest.mark.usefixtures("hasty")
def test_one_that_is_late_without_a_replica_is_waited_for(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["a"].take()
        await quiet()
        assert not collecting.done()
        await company["a"].answer()
        whole(await collecting)
        assert company.links.tally.frames == 1

    play(scenario, a=ALL)


def test_one_that_refuses_is_not_asked_for_that_again(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["b"].take()
        await company["b"].refuse()
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)
        assert company.links.tally.repeated_frames == 1 and not company.links.holders["b"].fenced
        assert not company.links.holders["b"].held[ROUTED.layer]

    play(scenario, a=ALL, b=ALL)


def test_where_everybody_refuses_the_step_fails(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        for name in "ba":
            await company[name].take()
            await company[name].refuse()
        with pytest.raises(ClusterError, match=r"expert 0 of layer 6 could not be had for 0.0 s .*a: lacks it; b: lacks it"):
            await collecting

    play(scenario, a=ALL, b=ALL)


@pytest.mark.parametrize(
    ("kind", "meta", "body", "why"),
    [
        (FrameKind.STEP, b"", b"", "a STEP frame"),
        (FrameKind.ERROR, b"\xc1", b"", "cannot be read"),
        (FrameKind.ERROR, b"\x91" * 50_000, b"", "cannot be read"),
        (FrameKind.EXPERTS, b"", b"", "cannot be read"),
        (FrameKind.EXPERTS, *encode_sums(sums_of(ROUTED)[1:]), "were asked for"),
        (FrameKind.EXPERTS, *encode_sums(sums_of(ROUTED) * np.inf), "not all numbers"),
    ],
)
def test_one_that_answers_what_cannot_be_is_never_asked_again(play: Any, kind: FrameKind, meta: bytes, body: bytes, why: str) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["b"].take()
        await company["b"].say(kind, company["b"].asked[0][0], meta, body)
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)
        await quiet()
        assert why in company.links.holders["b"].fenced and company["b"].tries == 1

    play(scenario, a=ALL, b=ALL)


def test_bytes_that_are_no_frame_lose_the_worker_and_its_replica_is_asked(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["b"].take()
        company["b"].refusing = True
        stream: Any = company.links._streams["b"]
        stream.feed(bytes(64))
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)
        assert company.links.tally.repeated_frames == 1 and company.links.holders["b"].away

    play(scenario, a=ALL, b=ALL)


def test_what_a_lost_worker_was_asked_is_split_among_several(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["a"].take()
        company["a"].refusing = True
        company["a"].streams[-1].abort()
        for name in "bc":
            await company[name].take()
            await company[name].answer()
        assert sorted(tuple(part.experts.tolist()) for part in await collecting) == [(0, 1), (2, 3)]
        assert company.links.tally.repeated_frames == 2

    play(scenario, a=ALL, b=frozenset({0, 1}), c=frozenset({2, 3}))


def test_a_worker_that_comes_back_is_asked_again(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        for _ in range(2):
            await company["a"].take()
            company["a"].streams[-1].abort()
            await quiet()
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)
        assert company["a"].tries == 3 and len({number for number, _ in company["a"].asked}) == 3

    play(scenario, a=ALL)


def test_rows_that_end_their_worker_each_time_fail_the_step(play: Any) -> None:
    """Not the worker, again and again."""

    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        for _ in range(3):
            await company["a"].take()
            company["a"].streams[-1].abort()
            await quiet()
        with pytest.raises(ClusterError, match="expert 0 of layer 6 could not be had"):
            await collecting
        assert company["a"].tries == 4, "it is connected for the next step"

    play(scenario, a=ALL)


def test_what_nobody_could_be_asked_for_is_asked_when_somebody_comes(play: Any) -> None:
    async def scenario(company: Company) -> None:
        hand = company["a"]
        hand.refusing = True
        hand.streams[-1].abort()
        await quiet()
        collecting = await company.ask()
        assert not hand.asked and not collecting.done()
        hand.refusing = False
        await quiet()
        await hand.take()
        await hand.answer()
        whole(await collecting)

    play(scenario, a=ALL)


@pytest.mark.parametrize("refusing", [True, False])
def test_one_that_cannot_be_had_is_tried_less_and_less_often(monkeypatch: pytest.MonkeyPatch, refusing: bool) -> None:
    """Also where it takes every connection and ends it."""

    async def whole() -> None:
        company, waited = Company({"a": ALL}, 1.0), list[float]()
        hand = company["a"]
        hand.refusing = refusing
        pause, connect, loop = asyncio.sleep, hand.connect, asyncio.get_running_loop()

        async def sleep(seconds: float) -> None:
            if asyncio.get_running_loop() is not loop:  # of a server that another test left in a thread
                await pause(seconds)
            else:
                waited.append(seconds)
                await pause(0)

        async def connect_and_end() -> MemoryStream:
            stream = await connect()
            hand.streams[-1].abort()
            return stream

        hand.connect = connect_and_end
        monkeypatch.setattr("shoal.node.expert_links.asyncio.sleep", sleep)
        opening = asyncio.ensure_future(company.links.open())
        while len(waited) < 12:
            await pause(0)
        await company.links.close()
        await asyncio.gather(opening, return_exceptions=True)
        assert waited[5] > 8 * waited[0] > 0 and 1.0 <= waited[10] <= 2.0

    asyncio.run(whole())


def test_links_do_not_open_where_an_expert_has_nobody_who_can_be_reached() -> None:
    async def whole() -> None:
        company = Company({"a": frozenset({0, 1}), "b": frozenset({1, 2})}, 1.0)
        company["b"].refusing = True
        with pytest.raises(ClusterError, match="nobody who can be reached holds expert 2 of layer 6"):
            await company.links.open()
        await company.links.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())


async def waiting(company: Company, how: str) -> asyncio.Task[list[Partial]]:
    """A step that waits: for an answer, for the parts of one, for one of two answers, or for a worker to come back."""
    collecting = await company.ask()
    if how == "an answer":
        return collecting
    company["a"].refusing = True
    if how == "nobody":
        company["b"].refusing = company["c"].refusing = True
        for name in "bc":
            company[name].streams[-1].abort()
    company["a"].streams[-1].abort()
    await quiet()
    return collecting


WAITS = pytest.mark.parametrize("how", ["an answer", "parts", "nobody"])
SPLIT = {"a": ALL, "b": frozenset({0, 1}), "c": frozenset({2, 3})}


@WAITS
def test_a_step_that_is_cancelled_while_it_waits_leaves_nothing_behind(play: Any, how: str) -> None:
    async def scenario(company: Company) -> None:
        collecting = await waiting(company, how)
        collecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await collecting
        await quiet()
        company.nothing_is_left()

    play(scenario, **SPLIT)


@WAITS
@pytest.mark.parametrize("end", ["forget", "close"])
def test_a_step_that_is_forgotten_while_it_waits_ends_with_an_error(play: Any, how: str, end: str) -> None:
    async def scenario(company: Company) -> None:
        collecting = await waiting(company, how)
        if end == "forget":
            company.links.forget()
        else:
            await company.links.close()
        with pytest.raises(ClusterError, match="the step ended"):
            await collecting
        await quiet()
        company.nothing_is_left()

    play(scenario, **SPLIT)


def test_where_one_part_cannot_be_had_the_others_are_forgotten(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await waiting(company, "parts")
        await company["c"].take()
        await company["c"].refuse()
        with pytest.raises(ClusterError, match="expert 2"):
            await collecting
        await quiet()
        company.nothing_is_left()

    play(scenario, patience=0.0, **SPLIT)


def test_what_was_sent_may_be_forgotten_before_it_is_collected(play: Any) -> None:
    async def scenario(company: Company) -> None:
        await company.links.send(Send(ROUTED, np.arange(3, dtype=np.int32)))
        company.links.forget()
        await company["a"].take()
        await company["a"].answer()
        await quiet()
        collecting = await company.ask()
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)

    play(scenario, a=ALL)


def test_rows_that_cannot_be_sent_are_the_steps_fault_and_no_workers(play: Any) -> None:
    async def scenario(company: Company) -> None:
        stream: Any = company.links._streams["a"]

        def offer(frame: Frame) -> bool:
            raise LocalProtocolError("a frame over the limits")

        stream.offer = offer
        with pytest.raises(LocalProtocolError, match="over the limits"):
            await (await company.ask())
        assert company.links.holders["a"].usable

    play(scenario, a=ALL)


def test_a_protocol_error_of_a_connection_is_no_reason_to_give_up(play: Any) -> None:
    async def scenario(company: Company) -> None:
        hand, connect, failures = company["a"], company["a"].connect, [RemoteProtocolError("what?"), EOFError(), TimeoutError("slow")]

        async def failing() -> MemoryStream:
            if failures:
                raise failures.pop()
            return await connect()

        hand.connect = failing
        hand.streams[-1].abort()
        collecting = await company.ask()
        await quiet()
        await hand.take()
        await hand.answer()
        whole(await collecting)

    play(scenario, a=ALL)


def came(parts: list[Partial]) -> list[int]:
    return sorted(expert for part in parts for expert in part.experts.tolist())


def test_spare_experts_of_a_lost_worker_are_left_to_the_stage(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask(ALL)
        await company["a"].take()
        company["a"].refusing = True
        company["a"].streams[-1].abort()
        assert await collecting == [] and company.links.tally.taken_back == 1
        assert await (await company.ask(ALL)) == [], "nobody is asked"

    play(scenario, a=ALL)


@pytest.mark.usefixtures("hasty")
def test_spare_experts_are_not_waited_for_when_they_are_late(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask(ALL)
        await company["a"].take()
        assert await collecting == []
        await company["a"].answer()

    play(scenario, a=ALL)


def test_what_is_not_spare_is_had_although_nobody_has_the_rest(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask(frozenset({0, 1}))
        await company["b"].take()
        company["b"].refusing = True
        company["b"].streams[-1].abort()
        await company["a"].take()
        await company["a"].answer()
        assert came(await collecting) == [2, 3]

    play(scenario, a=frozenset({2, 3}), b=ALL)


def test_where_it_may_a_step_goes_on_without_the_experts_of_a_lost_worker(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["b"].take()
        company["b"].refusing = True
        company["b"].streams[-1].abort()
        await company["a"].take()
        await company["a"].answer()
        assert came(await collecting) == [0, 1]
        assert company.links.tally.dropped == 2
        collecting = await company.ask()
        await company["a"].take()
        await company["a"].answer()
        assert came(await collecting) == [0, 1], "without waiting for it"

    play(scenario, degrade=True, a=frozenset({0, 1}), b=ALL)


@pytest.mark.usefixtures("hasty")
def test_where_it_may_a_step_waits_a_second_for_one_that_is_frozen_and_then_not_again(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask()
        await company["a"].take()
        await quiet()
        assert not collecting.done()
        company.now += 1.0
        company.links._wake()
        assert await collecting == [] and company.links.tally.dropped == 4
        assert await (await company.ask()) == [] and company.links.tally.frames == 1
        await company["a"].answer()
        await quiet()
        collecting = await company.ask()
        await company["a"].take()
        await company["a"].answer()
        whole(await collecting)

    play(scenario, degrade=True, a=ALL)


@pytest.mark.usefixtures("hasty")
def test_a_worker_that_becomes_slow_is_not_late_for_ever(play: Any) -> None:
    """What it answers too late counts, too."""

    async def scenario(company: Company) -> None:
        holder = company.links.holders["a"]
        for _ in range(32):
            collecting = await company.ask(ALL)
            await company["a"].take()
            company.now += 0.05
            await company["a"].answer()
            await quiet()
            await collecting
        usual = holder.late
        assert usual is not None and not holder.abandoned
        for _ in range(200):
            collecting = await company.ask(ALL)
            await company["a"].take()
            company.now += 1.0
            company.links._wake()
            await quiet()
            await company["a"].answer()
            await collecting
            await quiet()
        assert (holder.late or 0.0) > 5 * usual

    play(scenario, a=ALL)


def test_a_part_of_a_lost_question_knows_what_the_stage_has_too(play: Any) -> None:
    async def scenario(company: Company) -> None:
        collecting = await company.ask(frozenset({0, 1}))
        for name in "cab":  # the one that has all, then those that have a part
            if name != "b":
                await company[name].take()
                company[name].refusing = True
                company[name].streams[-1].abort()
                await quiet()
        await company["b"].take()
        await company["b"].answer()
        assert came(await collecting) == [2, 3]

    play(scenario, a=frozenset({0, 1}), b=frozenset({2, 3}), c=ALL)


@pytest.mark.usefixtures("hasty")
def test_a_late_question_is_asked_of_one_other_worker_at_a_time(play: Any) -> None:
    async def scenario(company: Company) -> None:
        for name in "abc":
            for _ in range(16):
                company.links.holders[name].answered(1.0)
        collecting = await company.ask()
        await company["c"].take()
        company.now += 20.0
        company.links._wake()
        await quiet()
        assert company.links.tally.hedged == 1
        company.now += 20.0
        company.links._wake()
        await quiet()
        assert company.links.tally.hedged == 2
        await company["c"].answer()
        whole(await collecting)

    play(scenario, a=ALL, b=ALL, c=ALL)
