"""Answers whose tokens were computed without an expert say how many these are, in every API; others say nothing of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.request import Request, TokenChunk
from tests.support import anthropic_api, ollama_api
from tests.support.engine import FakeEngine, Item, spoken
from tests.support.http import ask, complete, events

SAID = "Hello"


def degrading(request: Request) -> list[Item]:
    """The third token lacks an expert, and so do two of the prompt; each choice says so from then on."""
    out: list[Item] = []
    for choice in range(request.n):
        for at, item in enumerate(spoken(request, SAID, choice)):
            assert isinstance(item, TokenChunk)
            out.append(msgspec.structs.replace(item, degraded=2 if at < 2 else 3))
    return out


@pytest.mark.parametrize("asked", [ask, complete])
def test_a_whole_answer_counts_them(asked: Any) -> None:
    assert asked(FakeEngine(degrading)).json()["usage"]["degraded_tokens"] == 3
    assert asked(FakeEngine(degrading), n=2).json()["usage"]["degraded_tokens"] == 6
    assert "degraded_tokens" not in asked(FakeEngine()).text


@pytest.mark.parametrize("asked", [ask, complete])
def test_the_end_of_a_streamed_choice_counts_its_own(asked: Any) -> None:
    stream = events(asked(FakeEngine(degrading), stream=True, stream_options={"include_usage": True}))
    marks = [choice.get("degraded_tokens") for event in stream for choice in event["choices"]]
    assert marks == [None] * (len(marks) - 1) + [3]
    assert stream[-1]["usage"]["degraded_tokens"] == 3
    assert "degraded_tokens" not in asked(FakeEngine(), stream=True).text


def test_other_apis_count_them_in_their_usage() -> None:
    assert anthropic_api.ask(FakeEngine(degrading)).json()["usage"]["degraded_tokens"] == 3
    assert ollama_api.ask(FakeEngine(degrading), stream=False).json()["degraded_tokens"] == 3
    assert "degraded_tokens" not in ollama_api.ask(FakeEngine(), stream=False).text
