"""Workers of a head with several models: what they open, whose an answer is, and models that come and go while they run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.config import ApiSettings
from shoal.errors import NotReady
from shoal.gateway.engine import Engine
from shoal.gateway.workers import messages
from shoal.gateway.workers.client import RemoteEngines
from shoal.text.tokenizer_parts import TokenizerFiles
from tests.support.engine import Resumed, ScriptedStream, spoken
from tests.support.http import eventually
from tests.support.remote import NOBODY, Workers, files, some, taken
from tests.support.requests import asked, begun, read, text
from tests.support.several import Called, half, served


def run(work: Callable[[Workers], Awaitable[Any]], *engines: Called) -> Any:
    async def go() -> Any:
        with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
            made = Workers(served(*engines, aliases={}), Path(folder), ApiSettings())
            await made.server.start(made.path)
            try:
                async with asyncio.timeout(60):
                    return await work(made)
            finally:
                await made.end()

    return asyncio.run(go())


def named(worker: RemoteEngines, name: str) -> Engine:
    return next(engine for engine in worker.all if engine.name == name)


def opened(made: Workers) -> list[str]:
    return [path.stem for path, _ in made.opened]


def test_a_tokenizer_is_opened_when_its_model_is_asked_for() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        assert opened(made) == ["alpha"]
        await asyncio.gather(*(worker.find("beta") for _ in range(5)))
        assert opened(made) == ["alpha", "beta"]
        assert [engine.tokenizer for engine in worker.all] == [engine.tokenizer for engine in made.engines.all]
        assert [Path(path) for path, _ in made.opened] == [files(name).model for name in ("alpha", "beta", "gamma")]

    run(work, Called("alpha"), Called("beta"), Called("gamma"))


def test_a_tokenizer_that_cannot_be_opened_is_the_fault_of_its_own_requests() -> None:
    async def work(made: Workers) -> None:
        def fails(found: TokenizerFiles, trust_text: bool) -> Any:
            if found.model.stem == "beta" and not mended:
                raise NotReady("the file is gone")
            return made.engines.all[0].tokenizer

        worker = await RemoteEngines.connect(made.path, fails)
        running = asyncio.ensure_future(worker.run())
        with pytest.raises(NotReady, match="the file is gone"):
            await worker.find("beta")
        assert (await worker.find(None)).name == "alpha"
        mended.append(True)
        assert (await worker.find("beta")).name == "beta"
        await worker.close()
        await running

    mended = list[bool]()
    run(work, Called("alpha"), Called("beta"))


def test_an_answer_is_found_at_its_own_model_alone() -> None:
    async def work(made: Workers) -> None:
        first, second = await made.join(), await made.join()
        (stream,) = await begun(named(first, "beta"), asked())
        assert await named(second, "alpha").find("a", NOBODY) is None
        found = await named(second, "beta").find("a", NOBODY)
        assert found is not None
        await taken(stream)
        assert await some(found.streams[0], 3) == "Hel"

    run(work, Called("alpha"), Called("beta", half, hang=True))


def test_what_is_counted_is_counted_for_the_model_or_for_all() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        named(worker, "beta").observe_first_token(0.1)
        named(worker, "beta").observe_reuse(True)
        named(worker, "beta").observe_request("chat", "accepted", 3)
        worker.observe_request("chat", "404", 0)
        worker.observe_cache(7, 1)
        await worker.scrape()
        alpha, beta = engines
        assert (alpha.first_tokens, alpha.reused, alpha.observed, alpha.cache_bytes) == (0, [], [("chat", "404", 0)], 7)
        assert (beta.first_tokens, beta.reused, beta.observed, beta.cache_bytes) == (1, [True], [("chat", "accepted", 3)], 0)

    engines = Called("alpha"), Called("beta")
    run(work, *engines)


@pytest.mark.parametrize(("model", "what"), [("alpha", "cache"), ("", "first_token"), ("", "weather")])
def test_what_is_not_counted_there_is_refused(model: str, what: str) -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        worker._channel.say(messages.Observed(model, what, (1,)))
        await eventually(lambda: made.lost)

    run(work, Called("alpha"))


def test_every_worker_hears_of_models_names_and_states() -> None:
    async def work(made: Workers) -> None:
        workers = [await made.join() for _ in range(3)]

        async def all_know(names: list[str], aliases: dict[str, str], state: str) -> None:
            for worker in workers:
                await eventually(lambda worker=worker: ([*worker.names], worker.aliases, worker.state) == (names, aliases, state))
                assert {engine.name for engine in worker.all} == set(names)

        made.engines.add(Called("beta"))
        made.engines.rename({"best": "beta"})
        await all_know(["alpha", "beta"], {"best": "beta"}, "")
        workers.append(await made.join())
        await all_know(["alpha", "beta"], {"best": "beta"}, "")
        assert [(await worker.find("best")).name for worker in workers] == ["beta"] * 4
        made.engines.remove("alpha")
        await all_know(["beta"], {"best": "beta"}, "it was unloaded")

    run(work, Called("alpha"))


def test_what_outlived_a_model_goes_to_one_worker_when_it_comes() -> None:
    async def work(made: Workers) -> None:
        workers = [await made.join() for _ in range(2)]
        made.engines.add(late)
        await eventually(lambda: all(len(worker.all) == 2 for worker in workers))
        resumed = [named(worker, "beta").resumed() for worker in workers]
        assert [len(each) for each in resumed] == [1, 0]
        assert text(await read(resumed[0][0].streams[0])) == "again"

    request, late = asked("old-0"), Called("beta")
    late.before = [Resumed("old", b"note", [request], [ScriptedStream(request, spoken(request, "again"), False)])]
    run(work, Called("alpha"))


def test_what_outlived_a_model_waits_for_a_worker_where_there_is_none() -> None:
    async def work(made: Workers) -> None:
        made.engines.add(late)
        worker = await made.join()
        (resumed,) = named(worker, "beta").resumed()
        assert text(await read(resumed.streams[0])) == "again"
        assert named(worker, "alpha").resumed() == []
        assert opened(made) == ["alpha", "beta"]

    request, late = asked("old-0"), Called("beta")
    late.before = [Resumed("old", b"note", [request], [ScriptedStream(request, spoken(request, "again"), False)])]
    run(work, Called("alpha"))


def test_the_streams_of_a_model_that_goes_end_after_what_they_said() -> None:
    async def work(made: Workers) -> None:
        worker = await made.join()
        (stream,) = await begun(named(worker, "beta"), asked())
        (other,) = await begun(named(worker, "alpha"), asked("b-0"), answer="b")
        await eventually(lambda: not beta.streams[0]._items)
        gone = named(worker, "beta")
        made.engines.remove("beta")
        assert await some(stream, 3) == "Hel"
        with pytest.raises(NotReady, match="the model 'beta' was unloaded"):
            await anext(stream)
        assert beta.streams[0].closed and made.server.inside == 1
        with pytest.raises(NotReady, match="the model 'beta' was unloaded"):
            await begun(gone, asked("c-0"), answer="c")
        assert "beta" in {held.engine.name for held in made.server._answers.values()}
        gone.forget("a")
        await eventually(lambda: {held.engine.name for held in made.server._answers.values()} == {"alpha"})
        assert beta.kept == {}
        assert text([await anext(other) for _ in range(3)]) == "Hel"

    beta = Called("beta", half, hang=True)
    run(work, Called("alpha", half, hang=True), beta)
