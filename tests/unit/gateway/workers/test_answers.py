"""Answers and keys of several workers of one engine: whose an answer is, and what is counted over all."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from shoal.config import ApiSettings
from shoal.errors import IdTaken, RateLimited
from shoal.gateway.auth.key import KeyId, KeyLimits
from shoal.gateway.engine import TakenOver
from tests.support.engine import FakeEngine
from tests.support.http import eventually
from tests.support.remote import MODEL, NOBODY, Workers, one, run, some, taken
from tests.support.requests import asked, begun, hello, read, text
from tests.support.slow_engine import SlowEngine

# Joining


@pytest.mark.parametrize("trust_text", [False, True])
def test_a_worker_hears_the_settings_and_opens_the_model_itself(trust_text: bool) -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        assert worker.settings == settings
        assert made.opened == [(MODEL, settings.trust_text)]
        assert made.path.stat().st_mode & 0o777 == 0o600

    settings = ApiSettings(port=1234, api_workers=3, trust_text=trust_text)
    run(FakeEngine(), work, settings)


def test_who_leaves_is_told_by_its_process() -> None:
    async def work(made: Workers) -> None:
        await made.leave(await made.join())
        await eventually(lambda: made.lost == [os.getpid()])

    run(FakeEngine(), work)


# Answers of several workers


def test_an_answer_is_taken_up_from_its_beginning_by_another_worker() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await begun(one(first), asked(), named=True)
        fake.say(3)
        assert await some(stream, 3) == "Hel"
        found = await one(second).find("a", NOBODY)
        assert found is not None
        assert (found.id, found.note, found.requests) == ("a", b"note", [asked()])
        with pytest.raises(TakenOver):
            await anext(stream)
        assert await some(found.streams[0], 3) == "Hel"
        fake.say(3)
        assert text(await read(found.streams[0])) == "lo"

    fake = SlowEngine()
    run(fake, work)


def test_an_answer_goes_back_and_forth_and_has_one_reader() -> None:
    async def work(made: Workers) -> None:
        both = await made.join(), await made.join()
        (stream,) = await begun(one(both[0]), asked())
        for turn in range(1, 6):
            fake.say(1)
            found = await one(both[turn % 2]).find("a", NOBODY)
            assert found is not None
            await taken(stream)
            (stream,) = found.streams
        fake.say(1)
        assert text(await read(stream)) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_one_worker_may_find_what_it_has_itself() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        (stream,) = await begun(one(worker), asked())
        fake.say(2)
        assert await some(stream, 2) == "He"
        found = await one(worker).find("a", NOBODY)
        assert found is not None
        await taken(stream)
        stream.close()
        fake.say(4)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_what_the_worker_that_lost_an_answer_says_of_it_counts_no_more() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await begun(one(first), asked())
        found = await one(second).find("a", NOBODY)
        assert found is not None
        stream.end_choice(0)
        stream.close()
        one(first).forget("a")
        await first.scrape()
        assert (fake.streams[0].closed, fake.streams[0].ended, list(fake.kept)) == (False, set(), ["a"])
        fake.say(6)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_an_id_is_given_once_whichever_worker_is_asked() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        await begun(one(first), asked())
        with pytest.raises(IdTaken, match="/v1/streams/a"):
            await begun(one(second), asked())
        one(first).forget("a")
        await first.scrape()
        await begun(one(second), asked())

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert len(fake.streams) == 2


def test_an_id_that_is_being_given_is_taken() -> None:
    async def work(made: Workers) -> None:
        both = await made.join(), await made.join()
        results = await asyncio.gather(*(begun(one(worker), asked()) for worker in both), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["IdTaken", "list"]

    run(FakeEngine(), work)


def test_an_answer_that_was_found_for_nobody_waits_for_another_reader() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        await begun(one(first), asked(), named=True)
        finding = asyncio.ensure_future(one(second).find("a", NOBODY))
        await asyncio.sleep(0)
        finding.cancel()
        await asyncio.gather(finding, return_exceptions=True)
        await second.scrape()
        assert not fake.streams[0].closed
        found = await one(first).find("a", NOBODY)
        assert found is not None
        fake.say(6)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_only_whose_it_is_finds_an_answer() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await one(first).begin("a", msgspec.msgpack.encode({"owner": "alice"}), [asked()], True)
        for stranger in (NOBODY, KeyId("bob")):
            assert await one(second).find("a", stranger) is None
        fake.say(2)
        assert await some(stream, 2) == "He"
        assert await one(second).find("a", KeyId("alice")) is not None
        await taken(stream)

    fake = SlowEngine()
    run(fake, work)


# What keys may ask of all workers together


ALICE = KeyId("alice")


def test_requests_of_a_key_are_counted_over_all_workers() -> None:
    async def work(made: Workers) -> None:
        first, second = [(await made.join()).limiter for _ in range(2)]
        limits = KeyLimits(requests=10, concurrency=2)
        left = [await limiter.enter(ALICE, limits) for limiter in (first, second)]
        assert [allowance.requests.remaining for allowance in left if allowance.requests is not None] == [9, 8]
        for limiter in (first, second):
            with pytest.raises(RateLimited, match="2 requests of this key are already running") as raised:
                await limiter.enter(ALICE, limits)
            assert (raised.value.what, raised.value.wait) == ("requests", 1.0)
        first.leave(ALICE)
        await first.enter(ALICE, limits)

    run(FakeEngine(), work)


def test_tokens_of_a_key_are_counted_over_all_workers() -> None:
    async def work(made: Workers) -> None:
        first, second = [(await made.join()).limiter for _ in range(2)]
        limits = KeyLimits(tokens=1000)
        await first.enter(ALICE, limits)
        for _ in range(400):
            first.spend(ALICE, 5)

        async def refused() -> bool:
            try:
                await second.enter(ALICE, limits)
            except RateLimited:
                return True
            return False

        while not await refused():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    run(FakeEngine(), work)


def test_the_requests_of_a_dead_worker_run_no_more() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        limits = KeyLimits(concurrency=2)
        await dying.limiter.enter(ALICE, limits)
        await other.limiter.enter(ALICE, limits)
        await made.leave(dying)
        await eventually(lambda: made.lost)
        await other.limiter.enter(ALICE, limits)
        with pytest.raises(RateLimited):
            await other.limiter.enter(ALICE, limits)

    run(FakeEngine(), work)


@pytest.mark.parametrize("turns", range(6))
def test_a_request_that_is_not_waited_for_has_left_whenever_that_was(turns: int) -> None:
    async def work(made: Workers) -> None:
        limiter = (await made.join()).limiter
        entering = asyncio.ensure_future(limiter.enter(ALICE, KeyLimits(concurrency=1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not entering.cancel() or (await asyncio.gather(entering, return_exceptions=True))[0] is None:
            limiter.leave(ALICE)
        await limiter.enter(ALICE, KeyLimits(concurrency=1))

    run(FakeEngine(), work)
