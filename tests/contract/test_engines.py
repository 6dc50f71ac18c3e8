"""What the gateway may expect of an engine, held in this process, over the socket to another, and behind a cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest

from shoal.config import CacheScope
from shoal.errors import ClusterError, InvalidRequest, NotReady, QueueFull, ShoalError, StageLost, StepFailed
from shoal.gateway.auth.key import KeyId
from shoal.gateway.caching import engines as caching
from shoal.gateway.caching.cache import AnswerCache
from shoal.gateway.caching.engine import CachingEngine
from shoal.gateway.caching.engines import CachingEngines
from shoal.gateway.engine import Engine, Stream
from shoal.gateway.engines import Engines
from shoal.gateway.http.reuse import REUSE, Reuse
from shoal.request import Alternative, FinishReason, Request, Score, TokenChunk
from shoal.serving.cache_control import CacheControl
from shoal.serving.response_cache import Question
from shoal.serving.response_store import AnswerStore
from tests.support.app import alone
from tests.support.engine import FakeEngine, Item, Resumed, ScriptedStream, says, spoken
from tests.support.http import eventually
from tests.support.remote import workers
from tests.support.requests import asked, begun, hello, read, text

Where = Callable[[FakeEngine], Any]


@asynccontextmanager
async def here(engine: FakeEngine) -> AsyncIterator[Engines]:
    yield alone(engine)


@asynccontextmanager
async def elsewhere(engine: FakeEngine) -> AsyncIterator[Engines]:
    async with workers(engine) as made:
        yield await made.join()


class Keeping(CachingEngine):
    """Keeps every answer, and gives none again."""

    async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> Sequence[Stream]:
        REUSE.set(Reuse(CacheControl(no_cache=True), Question(tuple(requests), seeded=True)))
        return await super().begin(answer, note, requests, named)


@asynccontextmanager
async def behind_a_cache(engine: FakeEngine) -> AsyncIterator[Engines]:
    with TemporaryDirectory() as folder, mock.patch.object(caching, "CachingEngine", Keeping):
        store = AnswerStore(Path(folder), 1 << 20, 60.0)
        async with workers(engine) as made:
            worker = await made.join()
            yield CachingEngines(worker, AnswerCache(store, CacheScope.KEY, worker))
        store.close()


@pytest.fixture(params=[here, elsewhere, behind_a_cache], ids=["here", "elsewhere", "behind a cache"])
def at(request: pytest.FixtureRequest) -> Where:
    return request.param


def with_engines(at: Where, fake: FakeEngine, work: Callable[[Engines], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with at(fake) as engines, asyncio.timeout(20):
            return await work(engines)

    return asyncio.run(go())


def with_engine(at: Where, fake: FakeEngine, work: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def found(engines: Engines) -> Any:
        return await work(await engines.find(None))

    return with_engines(at, fake, found)


def test_a_stream_says_what_the_engine_says(at: Where) -> None:
    async def work(engine: Engine) -> list[TokenChunk]:
        (stream,) = await begun(engine, request)
        ((note, kept),) = fake.kept.values()
        assert (note, [*kept]) == (b"note", [request])
        return await read(stream)

    fake = FakeEngine(says("one", "two é", "drei"))
    request = asked(n=3, logprobs=2)
    assert with_engine(at, fake, work) == says("one", "two é", "drei")(request)
    assert fake.asked == request


def test_many_streams_at_once_are_told_apart(at: Where) -> None:
    async def work(engine: Engine) -> list[str]:
        async def one(i: int) -> str:
            (stream,) = await begun(engine, asked(f"a{i}-0", tokens=1 + i), answer=f"a{i}")
            return text(await read(stream))

        return await asyncio.gather(*(one(i) for i in range(40)))

    said = "x" * 50
    assert with_engine(at, FakeEngine(says(said)), work) == [said[: 1 + i] for i in range(40)]


REFUSALS = [
    NotReady("no model yet"),
    QueueFull(9, 8),
    ClusterError("a node failed"),
    InvalidRequest("too long", "prompt", "context_length_exceeded"),
    StepFailed(2, "it fell over", 77),
]


def same(error: ShoalError, other: ShoalError) -> bool:
    return (type(error), str(error), vars(error)) == (type(other), str(other), vars(other))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda e: type(e).__name__)
def test_a_refusal_is_what_the_engine_raised(at: Where, refusal: ShoalError) -> None:
    async def work(engine: Engine) -> None:
        with pytest.raises(type(refusal)) as raised:
            await begun(engine, asked())
        assert same(raised.value, refusal)

    fake = FakeEngine()
    fake.refusal = refusal
    with_engine(at, fake, work)
    assert fake.kept == {}


def test_all_requests_of_an_answer_are_submitted_or_none(at: Where) -> None:
    class Full(FakeEngine):
        def submit(self, request: Request) -> ScriptedStream:
            if len(self.streams) == 2:
                raise QueueFull(2, 2)
            return super().submit(request)

    async def work(engine: Engine) -> None:
        with pytest.raises(QueueFull):
            await begun(engine, *(asked(f"a-{i}") for i in range(3)))

    fake = Full()
    with_engine(at, fake, work)
    assert [stream.closed for stream in fake.streams] == [True, True]


def test_an_error_comes_after_what_was_said_before_it(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (stream,) = await begun(engine, asked())
        said = [await anext(stream) for _ in range(3)]
        assert text(said) == "Hel"
        with pytest.raises(StageLost, match="a node was lost"):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    with_engine(at, FakeEngine(lambda r: [*hello(r), StageLost("a node was lost")]), work)


def test_a_choice_that_was_ended_is_not_heard_of(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (stream,) = await begun(engine, asked(n=2))
        first = await anext(stream)
        stream.end_choice(first.choice)
        rest = await read(stream)
        assert {chunk.choice for chunk in rest} == {1 - first.choice}
        assert text([first, *rest], 1 - first.choice) == "two"
        await eventually(lambda: fake.streams[0].ended == {first.choice})

    fake = FakeEngine(says("one", "two"))
    with_engine(at, fake, work)


def test_a_stream_whose_choices_were_ended_is_over(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (stream,) = await begun(engine, asked())
        assert text([await anext(stream) for _ in range(3)]) == "Hel"
        waiting = asyncio.ensure_future(read(stream))
        await asyncio.sleep(0)
        stream.end_choice(0)
        assert await waiting == []

    with_engine(at, FakeEngine(hello, hang=True), work)


def test_closing_ends_it_at_the_engine_and_for_who_waits(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (stream,) = await begun(engine, asked())
        waiting = asyncio.ensure_future(read(stream))
        await eventually(lambda: not fake.streams[0]._items)
        stream.close()
        assert len(await waiting) <= 3
        await eventually(lambda: fake.streams[0].closed)

    fake = FakeEngine(hello, hang=True)
    with_engine(at, fake, work)


def test_what_is_forgotten_is_kept_no_longer(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (stream,) = await begun(engine, asked(), named=True)
        await read(stream)
        assert list(fake.kept) == ["a"]
        stream.close()
        engine.forget("a")
        await eventually(lambda: not fake.kept)

    fake = FakeEngine()
    with_engine(at, fake, work)


def test_an_answer_that_nobody_waits_for_any_more_is_not_begun(at: Where) -> None:
    class Slow(FakeEngine):
        async def begin(self, answer: str, note: bytes, requests: Sequence[Request], named: bool) -> list[ScriptedStream]:
            streams = await super().begin(answer, note, requests, named)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                for stream in streams:
                    stream.close()
                raise
            return streams

    async def work(engine: Engine) -> None:
        beginning = asyncio.ensure_future(begun(engine, asked()))
        await eventually(lambda: fake.streams)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await eventually(lambda: fake.streams[0].closed)

    fake = Slow(hello, hang=True)
    with_engine(at, fake, work)


def test_its_state_is_the_engines(at: Where) -> None:
    class Loading(FakeEngine):
        def longest(self) -> int:
            if self.state:
                raise NotReady(self.state)
            return super().longest()

    async def work(engine: Engine) -> None:
        assert (engine.name, engine.identity, engine.created, engine.facts, engine.vocabulary, engine.resume) == (
            fake.name,
            fake.identity,
            fake.created,
            fake.facts,
            fake.vocabulary,
            60.0,
        )
        assert (engine.state, engine.longest()) == ("", 1000)
        fake.state = "1 of 2 nodes have joined"
        await eventually(lambda: engine.state == fake.state)
        with pytest.raises(NotReady, match="1 of 2"):
            engine.longest()
        fake.state = ""
        await eventually(lambda: engine.state == "")
        assert engine.longest() == 1000

    fake = Loading()
    with_engine(at, fake, work)


def test_what_is_observed_is_counted_where_it_is_scraped(at: Where) -> None:
    async def work(engines: Engines) -> None:
        engine = await engines.find(None)
        engine.observe_first_token(0.25)
        engine.observe_request("chat", "accepted", 7)
        engine.observe_answer("left", 1.5)
        engine.observe_reuse(True)
        engine.observe_reuse(False)
        engines.observe_request("chat", "400", 0)
        engines.observe_cache(1000, 2)
        engines.observe_cache(500, 3)
        assert await engines.scrape() == b"shoal_ready 1\n"
        await eventually(
            lambda: (fake.first_tokens, fake.observed, fake.ended) == (1, [("chat", "accepted", 7), ("chat", "400", 0)], ["left"])
        )
        assert (fake.reused, fake.cache_bytes, fake.evicted) == ([True, False], 500, 5)

    fake = FakeEngine()
    with_engines(at, fake, work)


def test_what_outlived_another_engine_says_all_of_it_again(at: Where) -> None:
    async def work(engine: Engine) -> None:
        (resumed,) = engine.resumed()
        assert (resumed.id, resumed.note, [*resumed.requests]) == ("old", b"note", [request])
        assert text(await read(resumed.streams[0])) == "Hello"

    request = asked("old-0")
    fake = FakeEngine()
    fake.before = [Resumed("old", b"note", [request], [ScriptedStream(request, spoken(request, "Hello"), False)])]
    with_engine(at, fake, work)


def test_a_choice_ends_as_the_engine_says(at: Where) -> None:
    async def work(engine: Engine) -> list[FinishReason | None]:
        streams = await begun(engine, asked("a-0", tokens=2), asked("a-1"))
        return [(await read(stream))[-1].finish for stream in streams]

    assert with_engine(at, FakeEngine(), work) == [FinishReason.LENGTH, FinishReason.STOP]


def test_an_answer_that_nobody_began_is_not_found(at: Where) -> None:
    async def work(engine: Engine) -> None:
        assert await engine.find("nothing", KeyId("")) is None

    with_engine(at, FakeEngine(), work)


def test_what_was_asked_about_the_prompt_comes_whole(at: Where) -> None:
    def script(request: Request) -> list[Item]:
        scores = (Score(72, None), Score(105, -0.5, (Alternative(105, -0.5), Alternative(5, -1.5))))
        told = TokenChunk(request.id, 0, None, scores=scores, embedding=bytes(range(256)))
        return [told, TokenChunk(request.id, 0, None, finish=FinishReason.LENGTH)]

    async def work(engine: Engine) -> None:
        (stream,) = await engine.begin("a", b"", [asked()], False)
        assert fake.kept == {}
        assert await read(stream) == script(asked())
        stream.close()
        engine.forget("a")
        await eventually(lambda: fake.streams[0].closed)

    fake = FakeEngine(script)
    with_engine(at, fake, work)
