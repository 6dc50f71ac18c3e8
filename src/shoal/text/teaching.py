"""Tools and calls in conversations whose template does not show them itself.

DeepSeek's templates show calls and results but not the tools: the system message describes them in the form of DeepSeek's model
cards. Phi-4-mini's template takes the tools from the system message. Those of Phi, SmolLM 3 and Granite 3 show only the text of
an answer: its calls are written into it, as the model wrote them. For GLM 4 a call is a message of its own, and a result a
message of the role `observation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.text.tools import ToolFormat

Message = Mapping[str, Any]


def described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], format: ToolFormat) -> list[Message]:
    """The messages with a description of the tools at the end of the system message."""
    system, rest = _parted(messages)
    said = str(system.get("content") or "")
    return [{**system, "content": (said + "\n\n" if said else "") + _description(tools, format)}, *rest]


def attached(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with the JSON of the tools in the field `tools` of the system message."""
    system, rest = _parted(messages)
    said = system.get("content") or "You are a helpful assistant with some tools."
    return [{**system, "content": said, "tools": _json([tool["function"] for tool in tools])}, *rest]


def spelled(message: Message, format: ToolFormat) -> Message:
    """A message with its calls in its content."""
    calls = message.get("tool_calls")
    if not calls or format.tags is not None:
        return message
    said = format.written([(call["function"]["name"], _json(call["function"]["arguments"])) for call in calls])
    return {**message, "content": (message.get("content") or "") + said}


def observed(messages: Sequence[Message]) -> list[Message]:
    """The messages with calls and results as GLM 4's template takes them."""
    out: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        if message.get("content") or not calls:
            out.append({**message, "role": "observation"} if message.get("role") == "tool" else message)
        for call in calls:
            function = call["function"]
            out.append({"role": "assistant", "metadata": function["name"], "content": _json(function["arguments"])})
    return out


def _parted(messages: Sequence[Message]) -> tuple[Message, Sequence[Message]]:
    """The system message, an empty one if there is none, and the rest."""
    if messages and messages[0].get("role") == "system":
        return messages[0], messages[1:]
    return {"role": "system", "content": ""}, messages


def _description(tools: Sequence[Mapping[str, Any]], format: ToolFormat) -> str:
    each = "".join(
        f"\n### {f['name']}\nDescription: {f.get('description') or ''}\n\nParameters: {_json(f['parameters'])}\n"
        for f in (tool["function"] for tool in tools)
    )
    call = format.begin + "tool_call_name" + format.middle + "tool_call_arguments" + format.end
    return (
        f"## Tools\nYou have access to the following tools:\n{each}\n"
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{format.opening}{call}{{additional_tool_calls}}{format.closing}\n\n"
        "Where:\n"
        "- `tool_call_name` is the name of one of the tools above\n"
        "- `tool_call_arguments` is a JSON object that follows the Parameters of that tool\n"
        "- further calls follow in the same form"
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
