"""How models write tool calls: the formats there are, and which of them a chat template teaches.

hermes     <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>       Hermes, Qwen 2.5 and 3; several, one a line
mistral    [TOOL_CALLS] [{"name": "f", "arguments": {}}, …]                Mistral up to v7; the marker is a special token
llama3     {"name": "f", "parameters": {}}                                Llama 3.1 to 3.3; one call, and nothing around it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    strict: bool = False
    """Whether a schema that cannot be held to in full is refused."""
    input: str = ""
    """Of a tool whose only argument is the text `input`: Lark of what stands between its quotes; empty: any text."""


@dataclass(frozen=True)
class ToolFormat:
    """`opening` and `closing` stand around all calls, `begin` and `end` around each; {name_key: …, arguments_key: …} is in between."""

    name: str
    opening: str = ""
    begin: str = ""
    end: str = ""
    closing: str = ""
    separator: str | None = None
    """Between calls; None: an answer has one at most."""
    name_key: str = "name"
    arguments_key: str = "arguments"

    trigger: str = ""
    """What `opening` or `begin` begins with and no other text has; empty where a call is bare JSON."""


HERMES = ToolFormat("hermes", begin="<tool_call>\n", end="\n</tool_call>", separator="\n", trigger="<tool_call>")
MISTRAL = ToolFormat("mistral", opening="[TOOL_CALLS] [", closing="]", separator=", ", trigger="[TOOL_CALLS]")
LLAMA3 = ToolFormat("llama3", arguments_key="parameters")


def detect(template: str) -> ToolFormat | None:
    """The format that a chat template's source teaches; None for one without tools, or with a format that is not known here."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template and "<function=" not in template and "arguments" in template:
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return replace(MISTRAL, opening="[TOOL_CALLS][") if "[TOOL_CALLS][" in template else MISTRAL
    if "<|start_header_id|>" in template and '"parameters": ' in template.replace('\\"', '"'):
        return LLAMA3
    return None
