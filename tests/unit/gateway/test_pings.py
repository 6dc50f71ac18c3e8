"""A stream that has nothing to say for a while says so, in comments that no client takes for events."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import anthropic
import ollama
import openai
import pytest

from shoal.config import ApiSettings
from shoal.errors import ConfigError
from shoal.request import Request, TokenChunk
from tests.support.api import Api, Wire, api, post, run
from tests.support.engine import FakeEngine, ScriptedStream, says
from tests.support.http import CHAT, COMPLETIONS

RESPONSES = "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": HI}, COMPLETIONS: {"prompt": "Hi"}, RESPONSES: {"input": "Hi"}}
COMMENT = re.compile(rb"^: [^\n]*\n\r\n", re.MULTILINE)
"""A line, and the end of the chunk that it comes in."""


class LateEngine(FakeEngine):
    """Each token comes when the gate lets it."""

    def __init__(self) -> None:
        super().__init__(says("Hello"))
        self.gate = asyncio.Semaphore(0)

    def submit(self, request: Request) -> ScriptedStream:
        stream = super().submit(request)
        gate, advance = self.gate, stream.__anext__

        class Gated(ScriptedStream):
            async def __anext__(self) -> TokenChunk:
                await gate.acquire()
                return await advance()

        gated = Gated(request, [], False)
        self.streams[-1] = gated
        return gated


async def until_comments(wire: Wire, count: int) -> bytes:
    """What came up to so many comments."""
    said = b""
    while len(COMMENT.findall(said)) < count:
        said += await wire.reader.read(65536)
    return said


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_waits_says_that_it_lives(path: str) -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0.02) as there:
            wire = await there.connect(post({**BODIES[path], "stream": True}, path, "X-Request-Id: mine"))
            await until_comments(wire, 3)  # while its prompt is computed
            engine.gate.release()
            await until_comments(wire, 2)  # and in the middle
            again = await there.connect(b"GET /v1/streams/mine HTTP/1.1\r\nHost: x\r\n\r\n")
            await until_comments(again, 2)  # and where it is taken up again
            for _ in range(9):
                engine.gate.release()
            end = b"response.completed" if path == RESPONSES else b"[DONE]"
            assert end in await again.reader.readuntil(b"0\r\n\r\n")

    run(work)


def test_what_was_not_asked_for_is_not_said() -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0) as there:
            wire = await there.connect(post({**BODIES[CHAT], "stream": True}))
            await asyncio.sleep(0.2)
            for _ in range(9):
                engine.gate.release()
            assert not COMMENT.search(await wire.reader.readuntil(b"0\r\n\r\n"))

    run(work)


def test_a_message_that_waits_has_pings_as_anthropic_has_them() -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0.02) as there:
            wire = await there.connect(post({"messages": HI, "max_tokens": 99, "stream": True}, "/v1/messages"))
            await wire.reader.readuntil(b"message_start")
            for _ in range(3):
                await wire.reader.readuntil(b'\r\nevent: ping\ndata: {"type": "ping"}\n\n\r\n')  # without an id: it is no news
            engine.gate.release()
            await wire.reader.readuntil(b'"text":"H"')
            await wire.reader.readuntil(b'\r\nevent: ping\ndata: {"type": "ping"}\n\n\r\n')
            for _ in range(9):
                engine.gate.release()
            assert b"message_stop" in await wire.reader.readuntil(b"0\r\n\r\n")

    run(work)


@pytest.mark.parametrize(
    ("path", "body", "empty"),
    [
        ("/api/chat", {"messages": HI}, {"message": {"role": "assistant", "content": ""}}),
        ("/api/generate", {"prompt": "Hi"}, {"response": ""}),
    ],
)
def test_lines_that_wait_have_lines_that_say_nothing(path: str, body: dict[str, Any], empty: dict[str, Any]) -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0.02) as there:
            wire = await there.connect(post(body, path))
            await wire.reader.readuntil(b"\r\n\r\n")
            told: list[dict[str, Any]] = []
            for at in range(99):
                size = int(await wire.reader.readline(), 16)
                told.append(json.loads((await wire.reader.readexactly(size + 2))[:-2]))
                if told[-1]["done"]:
                    break
                if at in (2, 4, *range(6, 14)):
                    engine.gate.release()
            *said, end = [{key: each[key] for key in (*empty, "done")} for each in told]
            waited = {**empty, "done": False}
            assert said[:3] == [waited] * 3 and end == {**empty, "done": True}
            texts = [each["response"] if "response" in each else each["message"]["content"] for each in said]
            assert "".join(texts) == "Hello" and len(texts) > 9

    run(work)


@pytest.mark.slow
def test_the_packages_of_anthropic_and_ollama_skip_them() -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0.01) as there:
            where = f"http://127.0.0.1:{there.server.port}"
            letting = asyncio.create_task(slowly(there, engine))
            client = anthropic.AsyncAnthropic(base_url=where, api_key="none")
            async with client.messages.stream(model="fake", max_tokens=99, messages=[{"role": "user", "content": "Hi"}]) as stream:
                assert [text async for text in stream.text_stream] == list("Hello")
            await client.close()
            letting.cancel()
            letting = asyncio.create_task(slowly(there, engine))
            talking = ollama.AsyncClient(where)
            lines = await talking.chat("fake", HI, stream=True)
            assert "".join([line.message.content or "" async for line in lines]) == "Hello"
            await talking.close()
            letting.cancel()

    run(work)


async def slowly(there: Api, engine: LateEngine) -> None:
    for _ in range(9):
        await asyncio.sleep(0.03)
        engine.gate.release()


def test_the_openai_package_skips_them() -> None:
    async def work() -> None:
        engine = LateEngine()
        async with api(engine, ping=0.01) as there:
            letting = asyncio.create_task(slowly(there, engine))
            url = f"http://127.0.0.1:{there.server.port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                stream = await client.chat.completions.create(model="fake", messages=HI, stream=True)  # pyright: ignore
                assert [c.choices[0].delta.content async for c in stream][1:-1] == list("Hello")
                letting.cancel()
                letting = asyncio.create_task(slowly(there, engine))
                told = await client.responses.create(model="fake", input="Hi", stream=True)
                assert [e.delta async for e in told if e.type == "response.output_text.delta"] == list("Hello")
            letting.cancel()

    run(work)


@pytest.mark.parametrize("ping", [-1, float("nan"), 4000])
def test_the_seconds_are_checked(ping: float) -> None:
    with pytest.raises(ConfigError, match="--ping"):
        ApiSettings(ping=ping)
