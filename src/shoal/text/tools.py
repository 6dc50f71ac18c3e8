"""How models write tool calls: the known formats, and the one that a chat template teaches.

hermes        <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>            Hermes, Qwen 2.5 and 3; several, one a line
mistral       [TOOL_CALLS] [{"name": "f", "arguments": {}}, …]                     Mistral up to v7
mistral-args  [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}                           Mistral from v11 on, Magistral, Devstral
llama3        {"name": "f", "parameters": {}}                                      Llama 3.1 to 3.3; one call, and nothing around it
deepseek      <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json\\n{}\\n```<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>
                                                                                   DeepSeek V3 and R1
deepseek-v3.1 <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>
qwen3-coder   <tool_call>\\n<function=f>\\n<parameter=p>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>
glm           <tool_call>f\\n<arg_key>p</arg_key>\\n<arg_value>value</arg_value>\\n</tool_call>
                                                                                   GLM 4.5 and 4.6
harmony       <|channel|>commentary to=functions.f <|constrain|>json<|message|>{}   gpt-oss; one call (see harmony.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class ToolFunction:
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    strict: bool = False
    """Whether a schema that cannot be enforced in full is refused."""
    input: str = ""
    """For a tool whose only argument is the text `input`: Lark of the text between its quotes; empty: any text."""


@dataclass(frozen=True)
class Tags:
    """How arguments are written one by one: `begin` name `middle` value `end`. Strings are written as they are, everything else
    as JSON."""

    begin: str
    middle: str
    end: str


@dataclass(frozen=True)
class ToolFormat:
    """`opening` and `closing` enclose all calls; each is `begin` name `middle` arguments `end`."""

    name: str
    begin: str
    middle: str
    end: str
    opening: str = ""
    closing: str = ""
    separator: str | None = None
    """Between calls; None: an answer has at most one."""
    before: str = ""
    """A special token that may precede `opening` and means nothing."""
    tags: Tags | None = None
    """None: the arguments are a JSON object."""
    loose: bool = False
    """Whether models may leave out everything around the JSON (see loose.py)."""

    trigger: str = ""
    """The beginning of `opening` or `begin`, which no other text has; empty if a call is bare JSON."""


HERMES = ToolFormat(
    "hermes", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n", loose=True, trigger="<tool_call>"
)
MISTRAL = ToolFormat("mistral", '{"name": "', '", "arguments": ', "}", "[TOOL_CALLS] [", "]", separator=", ", trigger="[TOOL_CALLS]")
MISTRAL_ARGS = ToolFormat("mistral-args", "[TOOL_CALLS]", "[ARGS]", "", separator="", trigger="[TOOL_CALLS]")
LLAMA3 = ToolFormat("llama3", '{"name": "', '", "parameters": ', "}", before="<|python_tag|>")
_CALLS, _CALL, _SEP = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"), ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"), "<｜tool▁sep｜>"
DEEPSEEK = ToolFormat(
    "deepseek", f"{_CALL[0]}function{_SEP}", "\n```json\n", f"\n```{_CALL[1]}", *_CALLS, separator="\n", trigger=_CALLS[0]
)
DEEPSEEK_V31 = ToolFormat("deepseek-v3.1", _CALL[0], _SEP, _CALL[1], *_CALLS, separator="", trigger=_CALLS[0])
QWEN3_CODER = ToolFormat(
    "qwen3-coder",
    "<tool_call>\n<function=",
    ">\n",
    "</function>\n</tool_call>",
    separator="\n",
    tags=Tags("<parameter=", ">\n", "\n</parameter>\n"),
    trigger="<tool_call>",
)
GLM = ToolFormat(
    "glm",
    "<tool_call>",
    "\n",
    "</tool_call>",
    separator="\n",
    tags=Tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    trigger="<tool_call>",
)
HARMONY = ToolFormat("harmony", "<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", trigger="<|channel|>")
FORMATS = (HERMES, MISTRAL, MISTRAL_ARGS, LLAMA3, DEEPSEEK, DEEPSEEK_V31, QWEN3_CODER, GLM, HARMONY)


def detect(template: str) -> ToolFormat | None:
    """The format in a chat template's source; None for one without tools, or with an unknown format."""
    if "tools" not in template:
        return None
    if "<tool_call>" in template:
        return _tagged(template)
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return MISTRAL_ARGS
        return replace(MISTRAL, opening="[TOOL_CALLS][") if "[TOOL_CALLS][" in template else MISTRAL
    if DEEPSEEK.opening in template:
        return DEEPSEEK if "```json" in template else DEEPSEEK_V31
    if "<|channel|>" in template and "to=functions." in template:
        return HARMONY
    if "<|start_header_id|>" in template and '"parameters": ' in template.replace('\\"', '"'):
        return LLAMA3
    return None


def _tagged(template: str) -> ToolFormat | None:
    if "<function=" in template:
        return QWEN3_CODER if "<parameter=" in template else None
    if "<arg_key>" in template:
        return GLM
    return HERMES if "arguments" in template else None
