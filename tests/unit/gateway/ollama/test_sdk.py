"""The ollama SDK reads what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import ollama
import pytest

from shoal.errors import StageLost
from tests.support.app import app_of
from tests.support.engine import FakeEngine, able, says, spoken
from tests.support.http import serving
from tests.support.ollama_api import HI
from tests.support.weather import PARIS


def sdk(asked: FakeEngine, work: Callable[[ollama.AsyncClient], Awaitable[None]]) -> None:
    async def go() -> None:
        async with serving(app_of(asked)) as port:
            client = ollama.AsyncClient(host=f"http://127.0.0.1:{port}", trust_env=False)
            await work(client)
            await client._client.aclose()

    asyncio.run(go())


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return "sun" + city


@pytest.mark.slow
def test_the_sdk_reads_answers_and_streams() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        whole = await client.chat("fake", HI, tools=[get_weather])
        (call,) = whole.message.tool_calls or []
        assert (whole.message.content, call.function.name, call.function.arguments) == ("Hm.", "get_weather", {"city": "Paris"})
        assert whole.done and whole.done_reason == "stop" and (whole.total_duration or 0) > 0
        parts = [part async for part in await client.chat("fake", HI, tools=[get_weather], stream=True)]
        assert "".join(part.message.content or "" for part in parts) == "Hm." and parts[-1].done
        back = [*HI, whole.message, {"role": "tool", "content": "sun", "tool_name": "get_weather"}]
        assert (await client.chat("fake", back, tools=[get_weather])).done
        text = await client.generate("fake", "Hi", options={"num_predict": 3}, format="json")
        assert text.response == "Hm." and text.eval_count == 3
        assert [part.response async for part in await client.generate("fake", "Hi", stream=True, options={"num_predict": 2})] == [
            "H",
            "m",
            "",
        ]
        embedded = await client.embed("fake", ["a", "b"])
        assert len(embedded.embeddings) == 2 and len(embedded.embeddings[0]) == 4
        assert len((await client.embeddings("fake", "a")).embedding) == 4
        assert [model.model for model in (await client.list()).models] == ["fake:latest"]
        shown = await client.show("fake")
        assert shown.modelinfo is not None and shown.modelinfo["llama.block_count"] == 2 and "tools" in (shown.capabilities or ())
        assert [model.context_length for model in (await client.ps()).models] == [1000]

    sdk(able(says(f"Hm.\n{PARIS}")), work)


@pytest.mark.slow
def test_the_sdk_knows_the_errors() -> None:
    async def work(client: ollama.AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError, match="known here are fake") as found:
            await client.chat("nobody", HI)
        assert found.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="are not pulled"):
            await client.pull("fake")
        with pytest.raises(ollama.ResponseError, match="a node was lost"):
            async for _ in await client.chat("fake", HI, stream=True):
                pass

    sdk(able(lambda r: [*spoken(r, "Hel")[:3], StageLost("a node was lost")]), work)
