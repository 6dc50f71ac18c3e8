"""Two tools, what a model says that calls them, and chats that have them."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx

from shoal.gateway.engine import Engine
from tests.support.app import app_of
from tests.support.http import CHAT, HI, fetch

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa\\"ris"}}\n</tool_call>'
BOTH = PARIS + '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


def ask(engine: Engine, messages: list[Any] | None = None, **fields: Any) -> httpx.Response:
    return fetch(app_of(engine), "POST", CHAT, json={"messages": messages or HI, "tools": TOOLS, **fields})
