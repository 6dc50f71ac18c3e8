"""How a server ends: what runs may finish within a bound, nothing new is taken, and a second signal ends it at once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shoal.cli.cluster import serve_api
from shoal.errors import NotReady
from shoal.gateway.server import ApiServer
from shoal.request import Request
from tests.support.api import HI, api, post, run
from tests.support.cluster import served, until
from tests.support.engine import FakeEngine, Item, ScriptedStream, spoken
from tests.support.http import eventually
from tests.support.stories import streaming


class Refusable(FakeEngine):
    """Ends what runs when it is told to, as a head does."""

    def __init__(self) -> None:
        super().__init__(lambda request: spoken(request, "Hello")[:2], hang=True)
        self.reason = ""
        self._gates: list[asyncio.Event] = []

    def submit(self, request: Request) -> ScriptedStream:
        gate, engine = asyncio.Event(), self
        self._gates.append(gate)

        class Waiting(ScriptedStream):
            async def __anext__(self) -> Any:
                if self._items:
                    return await super().__anext__()
                await gate.wait()
                if engine.reason:
                    raise NotReady(engine.reason)
                self._items: list[Item] = spoken(request, "!")
                return await super().__anext__()

        stream = Waiting(request, self._script(request), True)
        self.streams.append(stream)
        return stream

    def refuse(self, reason: str) -> None:
        self.reason = reason
        self.go_on()

    def go_on(self) -> None:
        for gate in self._gates:
            gate.set()


def ended_by(engine: Refusable, stop: asyncio.Event, grace: float) -> Callable[[ApiServer], Coroutine[Any, Any, None]]:
    """Runs a server as the command line does."""

    async def report() -> None:
        await asyncio.Event().wait()

    return lambda server: serve_api(engine, server, stop, report(), grace)  # pyright: ignore[reportArgumentType]


def streamed(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) if line != b"data: [DONE]" else "[DONE]" for line in body.split(b"\n") if line.startswith(b"data: ")]


def test_streams_under_way_end_by_themselves_within_the_grace() -> None:
    async def work() -> None:
        engine, stop = Refusable(), asyncio.Event()
        async with api(engine, ended_by(engine, stop, 1000)) as there:
            client = await there.connect(post({**HI, "stream": True}))
            await eventually(lambda: engine.streams)
            stop.set()
            await eventually(lambda: there.service.in_flight.closing)
            assert await there.status() == 503
            assert not engine.reason
            engine.go_on()
            assert streamed((await client.answer())[1])[-1] == "[DONE]"
            await eventually(lambda: engine.reason)

    run(work)


@pytest.mark.parametrize(("grace", "signals"), [(0.05, 1), (1000, 2), (0, 1)], ids=["in time", "told again", "no grace"])
def test_what_does_not_end_ends_with_an_error(grace: float, signals: int) -> None:
    async def work() -> None:
        engine, stop = Refusable(), asyncio.Event()
        async with api(engine, ended_by(engine, stop, grace)) as there:
            client = await there.connect(post({**HI, "stream": True}))
            await eventually(lambda: engine.streams)
            for _ in range(signals):
                stop.set()
                await eventually(lambda: (there.service.in_flight.closing and not stop.is_set()) or engine.reason)
            assert streamed((await client.answer())[1])[-1]["error"]["message"] == "the server is shutting down"

    run(work)


def test_nobody_whose_request_never_came_whole_is_waited_for() -> None:
    async def work() -> None:
        engine, stop = Refusable(), asyncio.Event()
        async with api(engine, ended_by(engine, stop, 1000)) as there:
            idle = await there.connect(post(HI))
            await eventually(lambda: engine.streams)
            engine.go_on()
            assert (await idle.answer())[0] == 200
            half = await there.connect(post(HI)[:-5])
            await eventually(lambda: there.asking == 1)
            stop.set()
            await asyncio.gather(idle.rest(), half.rest())
            await eventually(lambda: engine.reason)

    run(work)


# Real processes


@pytest.mark.real
@pytest.mark.slow
def test_sigterm_lets_a_stream_end_and_takes_no_other(tmp_path: Path) -> None:
    with served(tmp_path, 1) as made, ThreadPoolExecutor(1) as pool:
        stream = streaming(made, pool, 400)
        made.head.signal(signal.SIGTERM)
        until(lambda: made.http.get("/health/ready").status_code == 503)
        assert made.complete("x").json()["error"]["code"] == "shutting_down"
        events = stream.result(60)
        assert events[-1] == "[DONE]"
        assert made.head.wait() == 0
        assert "1 request(s) have 30 s to end" in made.head.said
        assert "Traceback" not in made.head.said


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--grace", "0.5"), ()], ids=["the grace is over", "a second signal"])
def test_what_is_left_of_a_stream_is_told_that_the_server_ends(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with served(tmp_path, 1, *flags) as made, ThreadPoolExecutor(1) as pool:
        stream = streaming(made, pool, 6000)
        made.head.signal(signal.SIGTERM)
        if not flags:
            until(lambda: made.http.get("/health/ready").status_code == 503)
            made.head.signal(signal.SIGTERM)
        assert "shutting down" in json.loads(stream.result(30)[-1])["error"]["message"]
        assert made.head.wait() == 0
        assert "Traceback" not in made.head.said
