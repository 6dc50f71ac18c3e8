"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from shoal.errors import QueueFull
from shoal.gateway.endpoints.embeddings.embed import embed
from tests.support.app import app_of
from tests.support.engine import DIMENSIONS, FakeEngine
from tests.support.http import fetch, refused

PATH = "/v1/embeddings"


def ask(engine: FakeEngine, input: Any, **fields: Any) -> httpx.Response:
    return fetch(app_of(engine), "POST", PATH, json={"input": input, **fields})


def unit(text: str) -> list[float]:
    vector = np.array([*text.encode()[:DIMENSIONS], *[0] * DIMENSIONS][:DIMENSIONS], np.float32)
    return (vector / np.linalg.norm(vector)).tolist()


def test_one_text_becomes_a_vector_of_length_1():
    answer = ask(FakeEngine(), "abcd")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    (item,) = body["data"]
    assert (body["object"], body["model"], item["object"], item["index"]) == ("list", "fake", "embedding", 0)
    assert item["embedding"] == pytest.approx(unit("abcd"), rel=1e-6)
    assert np.linalg.norm(item["embedding"]) == pytest.approx(1)
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


@pytest.mark.parametrize("input", [["ab", "c"], [[97, 98], [99]]])
def test_a_batch_comes_back_in_its_order(input: Any):
    found = ask(FakeEngine(), input).json()["data"]
    assert [item["index"] for item in found] == [0, 1]
    assert [item["embedding"] for item in found] == [pytest.approx(unit("ab"), rel=1e-6), pytest.approx(unit("c"), rel=1e-6)]


def test_tokens_are_one_input():
    assert len(ask(FakeEngine(), [97, 98]).json()["data"]) == 1


def test_base64_holds_the_same_numbers():
    (item,) = ask(FakeEngine(), "abcd", encoding_format="base64").json()["data"]
    assert np.frombuffer(base64.b64decode(item["embedding"]), "<f4").tolist() == pytest.approx(unit("abcd"), rel=1e-6)


def test_nothing_is_drawn():
    engine = FakeEngine()
    ask(engine, "abcd")
    assert engine.asked.embed and engine.asked.max_tokens == 0


@pytest.mark.parametrize("input", ["", [], [""], [[]], ["a"] * 2049, [999], "x" * 2000])
def test_inputs_that_cannot_be_are_refused(input: Any):
    refused(ask(FakeEngine(), input), 400, "input")


def test_other_numbers_of_dimensions_are_refused():
    assert ask(FakeEngine(), "a", dimensions=DIMENSIONS).status_code == 200
    refused(ask(FakeEngine(), "a", dimensions=2), 400, "dimensions", "unsupported_value")


def test_another_model_is_not_found():
    refused(ask(FakeEngine(), "a", model="other"), 404, "model", "model_not_found")


def test_a_full_queue_is_said_and_nothing_is_left_running():
    engine = FakeEngine()
    engine.refusal = QueueFull(5, 5)
    refused(ask(engine, ["a", "b"]), 429, None, "queue_full")
    assert all(stream.closed for stream in engine.streams)


def test_a_large_batch_leaves_room_in_the_queue():
    async def scenario() -> None:
        engine = FakeEngine(hang=True)
        engine._script = lambda request: []  # nothing ever comes
        working = asyncio.ensure_future(embed([[1]] * 100, engine))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(engine.streams) == 16
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        assert len(engine.streams) == 16 and all(stream.closed for stream in engine.streams)

    asyncio.run(scenario())
