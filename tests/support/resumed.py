"""Streams of the API that are left and taken up again."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI

from shoal.request import Request
from tests.support.engine import FakeEngine, Item, Resumed, Script, ScriptedStream, spoken
from tests.support.http import CHAT, HI, Leaver

Event = tuple[str | None, Any]

NAME = {"X-Request-Id": "mine-1"}


def parsed(text: str) -> list[Event]:
    """(id, data) of each event."""
    out: list[Event] = []
    for block in text.split("\n\n"):
        if block:
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            assert set(fields) <= {"id", "data"}
            out.append((fields.get("id"), fields["data"] if fields["data"] == "[DONE]" else without_server(json.loads(fields["data"]))))
    return out


def texts(stream: list[Event], choices: int) -> list[str]:
    out = [""] * choices
    for _, data in stream:
        for choice in data["choices"] if data != "[DONE]" else ():
            out[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    return out


async def left(app: FastAPI, after: int, name: str | None = "mine-1", **fields: Any) -> list[Event]:
    """What a client saw that went away after so many parts."""
    leaver = Leaver({"messages": HI, "stream": True, **fields}, after, headers={} if name is None else {"X-Request-Id": name})
    await leaver.visit(app, CHAT)
    return parsed(b"".join(m.get("body", b"") for m in leaver.sent).decode())


def restarted(before: FakeEngine, script: Script) -> FakeEngine:
    """An engine after another one, with what that one kept."""
    after = FakeEngine()
    for id, (note, requests) in before.kept.items():
        after.before.append(Resumed(id, note, requests, [ScriptedStream(r, script(r), False) for r in requests]))
    return after


def interleaved(order: list[int], *said: str) -> Script:
    """Choices that come in between each other in some order; what is left of each comes in the end."""

    def script(request: Request) -> list[Item]:
        rows = [spoken(request, said[c], c) for c in range(request.n)]
        out = [rows[c].pop(0) for c in order if c < len(rows) and rows[c]]
        return out + [item for row in rows for item in row]

    return script


def without_server(event: dict[str, Any]) -> dict[str, Any]:
    """What says which start of the server an event is of may differ."""
    return {key: value for key, value in event.items() if key not in ("created", "system_fingerprint")}
