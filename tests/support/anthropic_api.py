"""Requests to Anthropic's API over an engine that says what it is told to, and what its answers hold."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx

from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.http import fetch
from tests.support.tools import CITY

MESSAGES = "/v1/messages"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}


def ask(
    asked: FakeEngine, messages: list[Any] = HI, path: str = MESSAGES, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    body = {"messages": messages, **({"max_tokens": 100} if path == MESSAGES else {}), **fields}
    return fetch(app_of(asked), "POST", path, json=body, headers=headers)


def streamed(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events, each of which says its name twice."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    out: list[dict[str, Any]] = []
    for part in answer.text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.split("\n"))
        out.append(json.loads(fields["data"]))
        assert fields["event"] == out[-1]["type"]
    return [event for event in out if event["type"] != "ping"]


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body == {"type": "error", "error": {"type": kind, "message": body["error"]["message"]}}
    return body["error"]["message"]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
