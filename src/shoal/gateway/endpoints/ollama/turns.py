"""Converts Ollama's messages to those of chat templates. In Ollama's, a result names the function, and possibly not the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Message, check_name, gone_on
from shoal.gateway.endpoints.ollama import wire


def templated(messages: Sequence[wire.Message]) -> Sequence[Message]:
    """Raises InvalidRequest."""
    out: list[Message] = []
    waiting: list[tuple[str, str]] = []
    """Calls without a result: each one's id and function name."""
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        known: Message = {"role": message.role, "content": message.content or ""}
        if message.thinking and message.role == "assistant":
            known["reasoning_content"] = message.thinking
        if message.tool_calls:
            if message.role != "assistant":
                raise InvalidRequest(f"a message with the role '{message.role}' cannot have tool_calls", f"{where}.tool_calls")
            known["tool_calls"] = [_call(call, where, at, i) for i, call in enumerate(message.tool_calls)]
            waiting += [(call["id"], call["function"]["name"]) for call in known["tool_calls"]]
        if message.role == "tool":
            known["tool_call_id"] = _answered(message, waiting, where)
        out.append(known)
    return gone_on(out)


def _call(call: wire.ToolCall, where: str, message: int, number: int) -> dict[str, Any]:
    check_name(call.function.name, f"{where}.tool_calls.{number}.function.name")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or f"{message}.{number}", "type": "function", "function": function}


def _answered(message: wire.Message, waiting: list[tuple[str, str]], where: str) -> str:
    """The id of the call that the message answers: the one that it names, or else the first possible one. Raises InvalidRequest."""
    for at, (id, name) in enumerate(waiting):
        if message.tool_call_id in (None, "", id) and message.tool_name in (None, "", name):
            del waiting[at]
            return id
    raise InvalidRequest(f"{where}: no tool call before this message is waiting for its result", where)
