"""Requests to Ollama's API over an engine that says what it is told to, and what its answers hold."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx

from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.http import fetch
from tests.support.tools import CITY

CHAT, GENERATE = "/api/chat", "/api/generate"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY}}
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


def ask(asked: FakeEngine, path: str = CHAT, **fields: Any) -> httpx.Response:
    body = {"model": "fake", **({"messages": HI} if path == CHAT else {"prompt": "Hi"} if path == GENERATE else {}), **fields}
    return fetch(app_of(asked), "POST", path, json=body)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson", answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return answer.json()["error"]


def timed(end: dict[str, Any]) -> dict[str, Any]:
    """Without the durations, which have to be there and fit each other."""
    assert all(isinstance(end[name], int) and end[name] >= 0 for name in DURATIONS)
    assert end["total_duration"] == end["prompt_eval_duration"] + end["eval_duration"] > 0
    return {name: value for name, value in end.items() if name not in DURATIONS}
