"""What becomes of answers when a worker or the head ends or dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from shoal.errors import ClusterError
from shoal.gateway.workers import channel as channels
from shoal.gateway.workers import messages
from shoal.gateway.workers.channel import Channel
from shoal.gateway.workers.messages import FromHead
from shoal.request import Request
from tests.support.engine import FakeEngine, Resumed, ScriptedStream, says, spoken
from tests.support.http import eventually
from tests.support.remote import NOBODY, Workers, one, run, some
from tests.support.requests import asked, begun, hello, read, text
from tests.support.slow_engine import SlowEngine

# Ending in good order


def test_the_head_waits_until_every_worker_has_finished() -> None:
    async def work(made: Workers) -> None:
        both = [await made.join() for _ in range(2)]
        (stream,) = await begun(one(both[0]), asked())
        assert made.server.inside == 1
        finishing = asyncio.ensure_future(made.server.finish())
        for worker in both:
            await worker.finishing.wait()
        late = await made.join()
        await late.finishing.wait()
        both[1].finished()
        await both[1].scrape()
        assert not finishing.done()
        fake.say(7)
        await read(stream)
        await eventually(lambda: made.server.inside == 0)
        both[0].finished()
        await finishing

    fake = SlowEngine()
    run(fake, work)


def test_the_head_does_not_wait_for_a_worker_that_is_gone() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        finishing = asyncio.ensure_future(made.server.finish())
        await dying.finishing.wait()
        await made.leave(dying)
        await finishing

    run(FakeEngine(), work)


# Workers that die


def test_the_unnamed_answers_of_a_dead_worker_end() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        await begun(one(dying), asked("a-0"), asked("a-1"))
        (stream,) = await begun(one(other), asked("b-0"), answer="b")
        await made.leave(dying)
        await eventually(lambda: [s.closed for s in fake.streams] == [True, True, False])
        assert list(fake.kept) == ["b"]
        assert await one(other).find("a", NOBODY) is None
        fake.say(6)
        assert text(await read(stream)) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_the_named_answer_of_a_dead_worker_goes_on_and_is_found_by_another() -> None:
    async def work(made: Workers) -> None:
        dying, other = await made.join(), await made.join()
        (stream,) = await begun(one(dying), asked(), named=True)
        fake.say(2)
        assert await some(stream, 2) == "He"
        await made.leave(dying)
        await eventually(lambda: made.lost)
        fake.say(2)
        await eventually(lambda: len(fake.streams[0]._items) == 2)
        found = await one(other).find("a", NOBODY)
        assert found is not None
        fake.say(2)
        assert text(await read(found.streams[0])) == "Hello"

    fake = SlowEngine()
    run(fake, work)


def test_the_worker_that_comes_for_a_dead_one_takes_up_its_named_answers() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        await begun(one(dying), asked("a-0"), asked("a-1"), named=True)
        await made.leave(dying)
        await eventually(lambda: made.lost)
        fresh = await made.join()
        (resumed,) = one(fresh).resumed()
        assert [text(await read(stream)) for stream in resumed.streams] == ["Hello", "Hello"]
        assert one(await made.join()).resumed() == []

    run(FakeEngine(), work)


def test_nobody_takes_up_a_named_answer_and_it_ends() -> None:
    async def work(made: Workers) -> None:
        dying = await made.join()
        await begun(one(dying), asked(), named=True)
        await made.leave(dying)
        await eventually(lambda: fake.streams[0].closed)
        assert fake.kept == {}
        assert one(await made.join()).resumed() == []

    fake = FakeEngine(hello, hang=True)
    fake.resume = 0.02
    run(fake, work)


def test_an_answer_that_was_being_begun_by_a_worker_that_dies_ends() -> None:
    class Slow(FakeEngine):
        async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[ScriptedStream]:
            streams = await super().begin(answer, note, requests, named)
            try:
                await asyncio.sleep(60)
            finally:
                for stream in streams:
                    stream.close()
            return streams

    async def work(made: Workers) -> None:
        dying = await made.join()
        beginning = asyncio.ensure_future(begun(one(dying), asked(), named=True))
        await eventually(lambda: fake.streams)
        await made.leave(dying)
        await eventually(lambda: fake.streams[0].closed)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)

    fake = Slow(hello, hang=True)
    run(fake, work)


def test_a_worker_that_does_not_read_is_given_up_and_holds_back_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_UNREAD", 1 << 16)

    async def work(made: Workers) -> None:
        reader, writer = await asyncio.open_unix_connection(made.path, limit=16)
        stuck: Channel[FromHead] = Channel(reader, writer, FromHead)
        stuck.say(messages.Join(4711))
        await stuck.hear()
        stuck.say(messages.Begin(0, "fake", "a", b"", [asked(tokens=200_000)], False))
        other = await made.join()
        await eventually(lambda: made.lost == [4711])
        assert fake.streams[0].closed
        (stream,) = await begun(one(other), asked("b-0"), answer="b")
        assert len(await read(stream)) == 100
        stuck.abort()

    fake = FakeEngine(says("x" * 200_000))
    run(fake, work)


# Heads that end


def test_what_runs_ends_with_the_head() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        (stream,) = await begun(one(worker), asked())
        assert await some(stream, 3) == "Hel"
        waiting = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        await made.server.close()
        await made._running[worker]
        await worker.close()
        with pytest.raises(ClusterError, match="engine is gone"):
            await waiting
        with pytest.raises(ClusterError, match="engine is gone"):
            await begun(one(worker), asked("b-0"), answer="b")

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert fake.streams[0].closed


def test_a_head_that_ends_in_good_order_forgets_no_named_answer() -> None:
    async def work(made: Workers) -> None:
        await begun(one(await made.join()), asked("a-0"), named=True)

    fake = FakeEngine(hello, hang=True)
    run(fake, work)
    assert (list(fake.kept), fake.streams[0].closed) == (["a"], True)


def test_the_first_worker_takes_up_what_outlived_another_head() -> None:
    async def work(made: Workers) -> None:
        (resumed,) = one(await made.join()).resumed()
        assert text(await read(resumed.streams[0])) == "Hello"
        found = await one(await made.join()).find("old", NOBODY)
        assert found is not None
        assert text(await read(found.streams[0])) == "Hello"

    request = asked("old-0")
    fake = FakeEngine()
    fake.before = [Resumed("old", b"note", [request], [ScriptedStream(request, spoken(request, "Hello"), False)])]
    run(fake, work)
