"""Items: the parts of a conversation, as stored and as sent to clients."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Message, call_arguments, check_name
from shoal.gateway.answers.custom import called_with
from shoal.gateway.endpoints.responses import wire
from shoal.gateway.endpoints.responses.wire import (
    CompactionItem,
    CustomToolCall,
    FunctionCall,
    Item,
    ItemReference,
    Reasoning,
    TextPart,
    ToolOutput,
)

_SUMMARISED = "What we said and did so far, in short:"
_VERSION = "shoal1."


def compaction(id: str, text: str) -> dict[str, Any]:
    """The item that stands for a compacted conversation. Its content is opaque to clients, who send it back unchanged; here it
    is encoded, not secret."""
    content = _VERSION + base64.urlsafe_b64encode(text.encode()).decode()
    return {"id": id, "type": "compaction", "encrypted_content": content}


def summary(content: str) -> str:
    """The text that `compaction` was given. Raises InvalidRequest."""
    try:
        if not content.startswith(_VERSION):
            raise ValueError
        return base64.b64decode(content.removeprefix(_VERSION), altchars=b"-_", validate=True).decode()
    except ValueError:
        message = "the compaction is none of this server's: only what /v1/responses/compact gave here can be read"
        raise InvalidRequest(message, "input") from None


def item_id(prefix: str, response: str, number: int) -> str:
    """The id of an item, which identifies its response."""
    return f"{prefix}_{response.removeprefix('resp_')}_{number}"


def responses_of(item: str) -> list[str]:
    """The responses that an item with this id may belong to."""
    name = item.partition("_")[2].rpartition("_")[0]
    return [f"resp_{name}", name] if name else []


def output_text(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def message(id: str, role: str, content: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
    return {"id": id, "type": "message", "status": status, "role": role, "content": content}


def function_call(id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    return {"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments}


def reasoning(id: str, text: str, status: str = "completed") -> dict[str, Any]:
    return {"id": id, "type": "reasoning", "status": status, "summary": [], "content": [reasoning_text(text)]}


def reasoning_text(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def custom_tool_call(id: str, call_id: str, name: str, input: str, status: str = "completed") -> dict[str, Any]:
    return {"id": id, "type": "custom_tool_call", "status": status, "call_id": call_id, "name": name, "input": input}


def _parts(content: str | list[TextPart], role: str) -> list[dict[str, Any]]:
    texts = [content] if isinstance(content, str) else [part.text for part in content]
    return [output_text(text) if role == "assistant" else {"type": "input_text", "text": text} for text in texts]


def input_items(given: str | list[Item], response: str, refer: Callable[[str], dict[str, Any]]) -> list[dict[str, Any]]:
    """What is stored of a request's input. refer: finds an item by id. Raises InvalidRequest."""
    if isinstance(given, str):
        return [message(item_id("in", response, 0), "user", _parts(given, "user"))]
    kept: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        match item:
            case wire.Message():
                kept.append(
                    message(item_id("in", response, number), item.role, _parts(item.content, item.role), item.status or "completed")
                )
            case FunctionCall():
                status = item.status or "completed"
                kept.append(function_call(item_id("in", response, number), item.call_id, item.name, item.arguments, status))
            case CustomToolCall():
                id, status = item_id("in", response, number), item.status or "completed"
                kept.append(custom_tool_call(id, item.call_id, item.name, item.input, status))
            case ToolOutput():
                output = item.output if isinstance(item.output, str) else _parts(item.output, "user")
                id, status = item_id("in", response, number), item.status or "completed"
                kept.append({"id": id, "type": item.type, "status": status, "call_id": item.call_id, "output": output})
            case Reasoning():
                kept.append(_reasoning(item, item_id("in", response, number)))
            case CompactionItem():
                summary(item.encrypted_content)
                id = item_id("in", response, number)
                kept.append({"id": id, "type": "compaction", "encrypted_content": item.encrypted_content})
            case ItemReference():
                kept.append({**refer(item.id), "id": item_id("in", response, number)})
    return kept


def _reasoning(item: Reasoning, id: str) -> dict[str, Any]:
    content = [part.model_dump(exclude_none=True) for part in item.content or ()]
    summary = [part.model_dump(exclude_none=True) for part in item.summary or ()]
    encrypted = {} if item.encrypted_content is None else {"encrypted_content": item.encrypted_content}
    return {"id": id, "type": "reasoning", "status": item.status or "completed", "summary": summary, "content": content, **encrypted}


def _text(parts: str | Sequence[dict[str, Any]]) -> str:
    return parts if isinstance(parts, str) else "".join(part["text"] for part in parts)


def _call(item: dict[str, Any]) -> dict[str, Any]:
    check_name(item["name"], "input")
    if item["type"] == "custom_tool_call":
        return {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": called_with(item["input"])}}
    if (arguments := call_arguments(item["arguments"])) is None:
        raise InvalidRequest(f"the arguments of the call '{item['call_id']}' are not a JSON object", "input")
    return {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": arguments}}


def messages(items: Sequence[dict[str, Any]]) -> list[Message]:
    """The conversation in the form of chat templates: what an assistant thinks, says and then calls is one message. Raises
    InvalidRequest."""
    out: list[Message] = []
    thought = ""
    for item in items:
        if item["type"] == "reasoning":
            thought += _text(item.get("content") or ())
            continue
        match item["type"]:
            case "function_call" | "custom_tool_call":
                if not out or out[-1]["role"] != "assistant" or thought:
                    out.append({"role": "assistant", "content": ""})
                out[-1].setdefault("tool_calls", []).append(_call(item))
            case "compaction":
                out.append({"role": "assistant", "content": f"{_SUMMARISED}\n\n{summary(item['encrypted_content'])}"})
            case "function_call_output" | "custom_tool_call_output":
                out.append({"role": "tool", "tool_call_id": item["call_id"], "content": _text(item["output"])})
            case _:
                role = "system" if item["role"] == "developer" else item["role"]
                out.append({"role": role, "content": _text(item["content"])})
        if thought and out[-1]["role"] == "assistant":
            out[-1]["reasoning_content"] = out[-1].get("reasoning_content", "") + thought
        thought = ""
    return out
