"""The API with a response cache over an engine that says what it is told to, and what its answers have besides ids and times."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
from fastapi import FastAPI

from shoal.config import ApiSettings
from shoal.serving.response_store import NAME
from tests.support.app import app_of
from tests.support.engine import FakeEngine
from tests.support.gate import bearer
from tests.support.http import CHAT, HI, fetch

COLD: dict[str, Any] = {"messages": HI, "temperature": 0}
CHANGING = frozenset({"id", "call_id", "item_id", "created", "created_at", "completed_at"})
DURATIONS = frozenset({"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"})


def cached(engine: FakeEngine, folder: Path, **settings: Any) -> FastAPI:
    return app_of(engine, ApiSettings(**{"data": str(folder), "response_cache": "1MiB", **settings}))


def post(app: FastAPI, path: str = CHAT, body: dict[str, Any] = COLD, control: str | None = None, token: str = "") -> httpx.Response:
    """control: its Cache-Control. token: of its key."""
    headers = {**({} if control is None else {"Cache-Control": control}), **(bearer(token) if token else {})}
    return fetch(app, "POST", path, json=body, headers=headers)


def mark(answer: httpx.Response) -> str | None:
    """hit, miss, or None where the cache has nothing to say."""
    found = answer.headers.get("x-shoal-cache")
    assert ("age" in answer.headers) == (found == "hit")
    return found


def marks(*answers: httpx.Response) -> list[str | None]:
    return [mark(answer) for answer in answers]


def unmarked(value: Any) -> Any:
    """Without ids and times."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: unmarked(each) for name, each in fields.items() if name not in CHANGING | DURATIONS}
    return [unmarked(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def said(answer: httpx.Response) -> list[Any]:
    """A whole answer's JSON, or a stream line by line: its JSON without ids and times, and its other lines as they are."""
    assert answer.status_code == 200, answer.text
    out: list[Any] = []
    for line in answer.text.splitlines():
        text = line.removeprefix("data: ")
        out.append(unmarked(json.loads(text)) if text.startswith("{") else line)
    return out


def age(folder: Path, seconds: float) -> None:
    """Makes all kept answers older."""
    with sqlite3.connect(folder / NAME) as connection:
        connection.execute("UPDATE answers SET made = made - ?", (seconds,))
    connection.close()


def kept(folder: Path) -> int:
    """How many answers are kept."""
    connection = sqlite3.connect(folder / NAME)
    (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    connection.close()
    return int(count)
