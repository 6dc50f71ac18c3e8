"""A node's experts serve several stages at once: each gets its own sums, and none can harm another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.node.expert_service import FEW_ROWS, MOST_WAITING, ExpertService
from shoal.transport.memory import MemoryStream, pair
from shoal.wire import messages
from shoal.wire.frame import Frame, FrameKind
from shoal.wire.routed import Routed, Sums, decode_sums
from tests.support.abacus import BAD, Abacus, summed
from tests.support.routed_rows import any_routed, changed, routed_of


class Asker:
    """A stage's end of a connection."""

    def __init__(self, stream: MemoryStream, serving: asyncio.Task[None]) -> None:
        self.stream, self.serving = stream, serving
        self.sent = 0

    async def ask(self, routed: Routed, epoch: int = 1, step: int | None = None) -> None:
        await self.stream.send(Frame(FrameKind.EXPERTS, epoch, self.sent if step is None else step, *routed.encode()))
        self.sent += 1

    async def sums(self, routed: Routed) -> Sums:
        """The next answer, to these rows."""
        frame = await self.stream.receive()
        assert frame.kind is FrameKind.EXPERTS
        return decode_sums(frame.meta, frame.body, routed)[0]

    async def error(self) -> tuple[int, str]:
        """The next answer's number, and what it says is wrong."""
        frame = await self.stream.receive()
        assert frame.kind is FrameKind.ERROR
        return frame.step, messages.decode_error(frame.meta).message


class Till:
    """A service whose computing waits until `open` is set."""

    def __init__(self) -> None:
        self.bank, self.open, self.now = Abacus(), asyncio.Event(), 0.0
        self.open.set()
        self.service = ExpertService(self.bank, self._compute, lambda: self.now)
        self.tasks = [asyncio.ensure_future(self.service.run())]

    async def _compute(self, work: Callable[[], Sums], size: int) -> Sums:
        await self.open.wait()
        return work()

    def asker(self) -> Asker:
        mine, its = pair()
        self.tasks.append(asyncio.ensure_future(self.service.serve(its)))
        return Asker(mine, self.tasks[-1])

    async def blocked(self) -> Asker:
        """Someone whose rows are under way, and stay so until `open` is set."""
        self.open.clear()
        first = self.asker()
        await first.ask(routed_of([{1: 1.0}], layer=77))
        await quiet()
        return first


async def quiet() -> None:
    """Until nothing goes on by itself."""
    for _ in range(300):
        await asyncio.sleep(0)


def play(scenario: Callable[[Till], Awaitable[None]]) -> None:
    async def whole() -> None:
        till = Till()
        try:
            async with asyncio.timeout(20):
                await scenario(till)
        finally:
            for task in till.tasks:
                task.cancel()
            await asyncio.gather(*till.tasks, return_exceptions=True)
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(whole())


ONE = routed_of([{3: 0.5, 4: 2.0}, {4: 1.0}])
MANY = routed_of([{2: 1.0}] * (FEW_ROWS + 1))


def test_an_answer_has_the_number_and_the_epoch_of_its_question_and_says_what_it_took() -> None:
    async def scenario(till: Till) -> None:
        asker = till.asker()
        for epoch, step in ((2**32 - 1, 2**64 - 1), (0, 0), (4, 8), (4, 8)):
            await asker.ask(ONE, epoch, step)
            frame = await asker.stream.receive()
            sums, _ = decode_sums(frame.meta, frame.body, ONE)
            assert (frame.epoch, frame.step) == (epoch, step) and np.array_equal(sums, summed(ONE))
        first = await till.blocked()
        till.now = 10.0
        await asker.ask(ONE)
        await quiet()
        till.now = 12.5
        till.open.set()
        frame = await asker.stream.receive()
        assert decode_sums(frame.meta, frame.body, ONE)[1].waited == 2.5
        assert (await first.stream.receive()).step == 0
        assert (till.service.work.frames, till.service.work.rows, till.service.work.calls) == (6, 11, 6)

    play(scenario)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), any_routed(rounded=None, layer=5, hidden=64)), min_size=1, max_size=12))
def test_each_gets_the_sums_of_its_own_rows(asked: list[tuple[int, Routed]]) -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        askers = [till.asker() for _ in range(4)]
        for who, routed in asked:
            await askers[who].ask(routed)
        await quiet()
        till.open.set()
        for who, _ in asked:  # the answers to one come in the order of what it asked, if all are of one kind
            frame = await askers[who].stream.receive()
            own = [mine for asker, mine in asked if asker == who]
            assert np.array_equal(decode_sums(frame.meta, frame.body, own[frame.step])[0], summed(own[frame.step]))
        assert len(till.bank.ran) <= 3  # the first, those that are rounded, and the others

    play(scenario)


def test_rows_of_one_layer_run_in_one_call_and_others_in_their_own() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        askers = [till.asker() for _ in range(5)]
        kinds = [
            ONE,
            routed_of([{4: 1.0}] * 3),
            routed_of([{3: 0.5, 4: 2.0}, {4: 1.0}], layer=1),
            routed_of([{5: 1.0}], rounded=False),
            routed_of([{5: 1.0}], hidden=64),
        ]
        for asker, routed in zip(askers, kinds, strict=True):
            await asker.ask(routed)
        await quiet()
        assert till.service.work.queued == 5
        till.open.set()
        for asker, routed in zip(askers, kinds, strict=True):
            assert np.array_equal(await asker.sums(routed), summed(routed))
        assert till.bank.ran == [1, ONE.rows + 3, ONE.rows, 1, 1]
        assert till.service.work.queued == 0

    play(scenario)


def test_few_rows_go_before_many_and_do_not_wait_for_them() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        prompt, token = till.asker(), till.asker()
        await prompt.ask(MANY)
        await quiet()
        for _ in range(2):
            await token.ask(ONE)
        await quiet()
        till.open.set()
        assert np.array_equal(await prompt.sums(MANY), summed(MANY))
        assert till.bank.ran == [1, 2 * ONE.rows, MANY.rows]

    play(scenario)


def test_a_call_has_no_more_rows_than_fit_together_unless_one_asks_for_more() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        sizes = [300, 200, 100, 12, 600]
        askers = [till.asker() for _ in sizes]
        for asker, size in zip(askers, sizes, strict=True):
            await asker.ask(routed_of([{1: 1.0}] * size, first=0, rounded=False))
        await quiet()
        till.open.set()
        for asker in askers:
            assert (await asker.stream.receive()).kind is FrameKind.EXPERTS
        assert till.bank.ran == [1, 512, 100, 600]

    play(scenario)


def test_an_error_reaches_only_who_asked() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        good, bad = [till.asker() for _ in range(3)], till.asker()
        await good[0].ask(ONE)
        await bad.ask(routed_of([{BAD: 1.0}]), step=41)
        await bad.ask(ONE, step=42)
        for asker in good[1:]:
            await asker.ask(ONE)
        await quiet()
        till.open.set()
        assert await bad.error() == (41, "a bad expert")
        for asker in (bad, *good):
            assert np.array_equal(await asker.sums(ONE), summed(ONE))
        assert till.service.work.frames == 5

    play(scenario)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameKind.EXPERTS, 1, 9, b"no metadata", b""),
        Frame(FrameKind.EXPERTS, 1, 9, ONE.encode()[0], b"no rows"),
    ],
)
def test_rows_that_cannot_be_end_the_connection_with_a_reason_and_harm_nobody(frame: Frame) -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        good, bad = till.asker(), till.asker()
        await good.ask(ONE)
        await bad.stream.send(frame)
        with pytest.raises(RemoteProtocolError):
            await bad.serving
        number, reason = await bad.error()
        assert number == 9 and reason
        till.open.set()
        assert np.array_equal(await good.sums(ONE), summed(ONE))

    play(scenario)


def test_a_frame_of_another_kind_ends_the_connection() -> None:
    async def scenario(till: Till) -> None:
        bad = till.asker()
        await bad.stream.send(Frame(FrameKind.STEP, 1, 9))
        with pytest.raises(RemoteProtocolError, match="a STEP frame where rows for experts"):
            await bad.serving

    play(scenario)


@pytest.mark.parametrize("wrong", [changed(ONE, index=ONE.index - 1), changed(ONE, offsets=np.array([0, 2**31 - 1, 3], np.int32))])
def test_entries_that_cannot_be_are_refused_and_harm_nobody(wrong: Routed) -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        good, bad = till.asker(), till.asker()
        await good.ask(ONE)
        await bad.ask(wrong, step=9)
        till.open.set()
        number, reason = await bad.error()
        assert number == 9 and "cannot be" in reason
        for asker in (good, bad):
            if asker is bad:
                await bad.ask(ONE)
            assert np.array_equal(await asker.sums(ONE), summed(ONE))

    play(scenario)


def test_bytes_that_are_no_frame_end_the_connection() -> None:
    async def scenario(till: Till) -> None:
        bad = till.asker()
        other: Any = bad.stream._other
        other.feed(bytes(100))
        with pytest.raises(RemoteProtocolError, match="tensor protocol"):
            await bad.serving

    play(scenario)


def test_one_that_takes_no_answers_stops_itself_and_nobody_else() -> None:
    async def scenario(till: Till) -> None:
        deaf, other = till.asker(), till.asker()

        async def flood() -> None:
            while True:
                await deaf.ask(ONE)

        flooding = asyncio.ensure_future(flood())
        await quiet()
        sent = deaf.sent
        assert till.service.work.queued == 0 and till.service.work.frames < 3 * MOST_WAITING
        for _ in range(40):
            await other.ask(ONE)
            assert np.array_equal(await other.sums(ONE), summed(ONE))
        await quiet()
        assert deaf.sent == sent
        for _ in range(100):  # it goes on where it stopped
            assert np.array_equal(await deaf.sums(ONE), summed(ONE))
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)

    play(scenario)


def test_no_more_is_read_than_may_wait() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        eager = till.asker()
        flooding = asyncio.gather(*(eager.ask(ONE) for _ in range(3 * MOST_WAITING)))
        await quiet()
        assert till.service.work.queued == MOST_WAITING
        till.open.set()
        for _ in range(3 * MOST_WAITING):
            assert np.array_equal(await eager.sums(ONE), summed(ONE))
        await flooding

    play(scenario)


@pytest.mark.parametrize("count", [1, MOST_WAITING - 1, MOST_WAITING, MOST_WAITING + 1, 2 * MOST_WAITING])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_one_that_hangs_up_while_it_waits_is_forgotten(count: int, how: str) -> None:
    """Also where so much of it waits that nothing is read."""

    async def scenario(till: Till) -> None:
        await till.blocked()
        gone, other = till.asker(), till.asker()
        for _ in range(count):
            await gone.ask(ONE)
        await other.ask(ONE)
        await quiet()
        await gone.stream.close() if how == "close" else gone.stream.abort()
        await quiet()
        till.open.set()
        assert np.array_equal(await other.sums(ONE), summed(ONE))
        with pytest.raises((EOFError, ConnectionError)):
            await gone.serving
        assert till.service.work.queued == 0

    play(scenario)


def test_what_those_who_hung_up_had_asked_does_not_pile_up() -> None:
    async def scenario(till: Till) -> None:
        await till.blocked()
        for _ in range(20):
            gone = till.asker()
            for _ in range(MOST_WAITING - 1):
                await gone.ask(ONE)
            await quiet()
            gone.stream.abort()
            await quiet()
            assert gone.serving.done() and till.service.work.queued == 0
        till.open.set()
        await quiet()
        assert till.bank.ran == [1]
        for task in till.tasks[2:]:
            assert isinstance(task.exception(), ConnectionError)

    play(scenario)


def test_a_service_that_ends_leaves_no_task() -> None:
    async def scenario(till: Till) -> None:
        first = await till.blocked()
        for _ in range(3):
            await till.asker().ask(ONE)
        await first.ask(ONE)  # and `play` looks

    play(scenario)


def test_many_rows_are_not_passed_over_for_long() -> None:
    """By frames of few rows that never end."""

    async def scenario(till: Till) -> None:
        await till.blocked()
        few, many = till.asker(), till.asker()
        await many.ask(MANY)
        await quiet()
        till.now += 0.3
        for _ in range(4):
            await few.ask(ONE)
        await quiet()
        till.open.set()
        assert np.array_equal(await many.sums(MANY), summed(MANY))
        for _ in range(4):
            assert np.array_equal(await few.sums(ONE), summed(ONE))
        assert till.bank.ran[1] == MANY.rows

    play(scenario)
