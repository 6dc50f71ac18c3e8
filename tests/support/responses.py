"""The Responses API over an engine that says what it is told to; its objects and events as the SDK understands them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx2 as httpx
from fastapi import FastAPI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from shoal.config import ApiSettings
from tests.support.app import app_of
from tests.support.engine import ByteTokenizer, FakeEngine

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class ResponsesApi:
    """Requests to one application in one event loop."""

    def __init__(self, engine: FakeEngine, folder: Path, **settings: Any) -> None:
        self.engine = engine
        self.app: FastAPI = app_of(engine, ApiSettings(data=str(folder), **settings))
        self._runner = asyncio.Runner()
        self.close = self._runner.close
        self.headers: dict[str, str] = {}

    def run(self, work: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(10):
                return await work

        return self._runner.run(bounded())

    def fetch(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
                return await client.request(method, path, **{**options, "headers": {**self.headers, **options.get("headers", {})}})

        return self.run(go())

    def create(self, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
        """A response, as the SDK understands it."""
        answer = self.fetch("POST", PATH, json={"input": input, **fields})
        assert answer.status_code == 200, answer.text
        Response.model_validate(answer.json(), strict=False)
        return answer.json()

    def stream(self, input: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
        return parsed(self.fetch("POST", PATH, json={"input": input, "stream": True, **fields}))

    def refused(self, status: int, method: str = "POST", path: str = PATH, **options: Any) -> dict[str, Any]:
        answer = self.fetch(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]

    def status(self, id: str) -> str:
        return self.fetch("GET", f"{PATH}/{id}").json()["status"]

    def prompt(self) -> str:
        """What the engine was asked last."""
        return ByteTokenizer().decode(self.engine.streams[-1].request.prompt)


def parsed(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events, each of which the SDK knows; their names, ids and numbers agree."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    out: list[dict[str, Any]] = []
    for block in answer.text.split("\n\n"):
        if block:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            event = json.loads(fields["data"])
            assert fields["event"] == event["type"]
            assert fields.get("id", str(event["sequence_number"])) == str(event["sequence_number"])
            assert type(EVENT.validate_python(event)).__name__ != "BaseModel"
            out.append(event)
    numbers = [event["sequence_number"] for event in out]
    assert numbers == list(range(numbers[0], numbers[0] + len(out))) if out else True
    return out


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types without `response.`, a run of deltas as one."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if not (name.endswith("delta") and at and names[at - 1] == name)]


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from what is added and the deltas."""
    out: list[dict[str, Any]] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(out)
                out.append(json.loads(json.dumps(event["item"])))
            case "content_part.added":
                out[event["output_index"]]["content"].append(dict(event["part"]))
            case "output_text.delta":
                part = out[event["output_index"]]["content"][event["content_index"]]
                part["text"] += event["delta"]
                part["logprobs"] = [*part["logprobs"], *event["logprobs"]]
            case "function_call_arguments.delta":
                out[event["output_index"]]["arguments"] += event["delta"]
            case "output_item.done":
                out[event["output_index"]]["status"] = event["item"]["status"]
                assert out[event["output_index"]] == event["item"]
            case _:
                pass
    return out


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


MESSAGE = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done"]
CALLED = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
