"""Converts Anthropic's messages to those of chat templates.

In a template, a turn has one text and its calls, and results are separate messages. Consecutive turns of the same role are
merged, as in Anthropic's API. System text in the middle of a conversation goes into the user's turn, marked as Claude Code
marks it: most templates accept a system message only in first place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Message, check_name, gone_on
from shoal.gateway.endpoints.messages import wire
from shoal.gateway.endpoints.messages.wire import RedactedThinking, Text, Thinking, ToolResult, ToolUse


def templated(system: str, messages: Sequence[wire.Message]) -> Sequence[Message]:
    """Raises InvalidRequest."""
    out: list[Message] = [{"role": "system", "content": system}] if system else []
    called: set[str] = set()
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        for i, block in enumerate(message.blocks(where)):
            here = f"{where}.content.{i}"
            match block:
                case RedactedThinking():
                    continue  # only the side that redacted it could read it
                case Thinking():
                    turn = _turn(out, "assistant")
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + block.thinking
                case ToolUse():
                    called.add(block.id)
                    _call(_turn(out, "assistant"), block, here)
                case ToolResult():
                    if block.tool_use_id not in called:
                        raise InvalidRequest(f"no tool_use before this has the id '{block.tool_use_id[:64]}'", f"{here}.tool_use_id")
                    out.append({"role": "tool", "content": block.said, "tool_call_id": block.tool_use_id})
                case Text() if message.role == "system":
                    _say(_turn(out, "user"), f"<system-reminder>\n{block.text}\n</system-reminder>")
                case _:
                    _say(_turn(out, message.role), block.said)
    return gone_on(out)


def _turn(out: list[Message], role: str) -> Message:
    """The current turn of that role, or a new one."""
    if not out or out[-1]["role"] != role:
        out.append({"role": role, "content": ""})
    return out[-1]


def _say(turn: Message, text: str) -> None:
    turn["content"] += "\n" * bool(turn["content"]) + text


def _call(turn: Message, block: ToolUse, where: str) -> None:
    """Raises InvalidRequest."""
    check_name(block.name, f"{where}.name")
    calls: list[dict[str, Any]] = turn.setdefault("tool_calls", [])
    calls.append({"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}})
