"""How models write tool calls: the known formats, and the one that a chat template teaches.

hermes        <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>            Hermes, Qwen 2.5 and 3; several, one a line
mistral       [TOOL_CALLS] [{"name": "f", "arguments": {}}, …]                     Mistral up to v7
mistral-args  [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{}                           Mistral from v11 on, Magistral, Devstral;
                                                                                   f[CALL_ID]abc123def[ARGS]{} in Small 3.2
llama3        {"name": "f", "parameters": {}}                                      Llama 3.1 to 3.3; one call, and nothing around it
deepseek      <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json\\n{}\\n```<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>
                                                                                   DeepSeek V3 and R1
deepseek-v3.1 <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>…<｜tool▁calls▁end｜>
qwen3-coder   <tool_call>\\n<function=f>\\n<parameter=p>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>
glm           <tool_call>f\\n<arg_key>p</arg_key>\\n<arg_value>value</arg_value>\\n</tool_call>
                                                                                   GLM 4.5 and 4.6; without line breaks: GLM 4.7
minimax       <minimax:tool_call>\\n<invoke name="f">\\n<parameter name="p">value</parameter>\\n</invoke>\\n</minimax:tool_call>
granite       <|tool_call|>[{"name": "f", "arguments": {}}, …]                     Granite 3 (Granite 4 has hermes)
phi           <|tool_call|>[{"name": "f", "arguments": {}}, …]<|/tool_call|>       Phi-4-mini
cohere        <|START_ACTION|>[\\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {}},…\\n]<|END_ACTION|>
                                                                                   Command R7B and Command A
kimi          <|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|>…
glm4          f\\n{}                                                               GLM 4 (0414); one call, and nothing around it
harmony       <|channel|>commentary to=functions.f <|constrain|>json<|message|>{}   gpt-oss; one call (see harmony.py)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


ID, NAME = "\0", "\1"
"""Stand for the id and the name of a call in the parts of a format."""


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
    id: str = ""
    """A regular expression for what ID stands for."""
    ids: str = ""
    """How templates want the ids of calls, with the name for NAME and the number for ID; empty: any nine letters and digits."""
    named: bool = False
    """Whether only the name of a tool at the beginning of an answer tells a call from text."""
    loose: bool = False
    """Whether models may leave out everything around the JSON (see loose.py)."""

    trigger: str = ""
    """The beginning of `opening` or `begin`, which no other text has; empty if a call is bare JSON."""

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls by name and JSON of their arguments, for formats without tags."""
        each = [f"{self.begin}{name}{self.middle}{arguments}{self.end}".replace(ID, str(at)) for at, (name, arguments) in enumerate(calls)]
        return self.opening + (self.separator or "").join(each) + self.closing


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
GLM_COMPACT = replace(GLM, middle="", separator="", tags=Tags("<arg_key>", "</arg_key><arg_value>", "</arg_value>"))
MINIMAX = ToolFormat(
    "minimax",
    '<invoke name="',
    '">\n',
    "</invoke>\n",
    "<minimax:tool_call>\n",
    "</minimax:tool_call>",
    separator="",
    tags=Tags('<parameter name="', '">', "</parameter>\n"),
    trigger="<minimax:tool_call>",
)
GRANITE = replace(MISTRAL, name="granite", opening="<|tool_call|>[", trigger="<|tool_call|>")
PHI = replace(GRANITE, name="phi", closing="]<|/tool_call|>")
COHERE = ToolFormat(
    "cohere",
    f'{{"tool_call_id": "{ID}", "tool_name": "',
    '", "parameters": ',
    "}",
    "<|START_ACTION|>[\n    ",
    "\n]<|END_ACTION|>",
    separator=",\n    ",
    id="[0-9]{1,3}",
    trigger="<|START_ACTION|>",
)
KIMI = ToolFormat(
    "kimi",
    "<|tool_call_begin|>functions.",
    f":{ID}<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    separator="",
    id="[0-9]{1,3}",
    ids=f"functions.{NAME}:{ID}",
    trigger="<|tool_calls_section_begin|>",
)
GLM4 = ToolFormat("glm4", "", "\n", "", named=True)
HARMONY = ToolFormat("harmony", "<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", trigger="<|channel|>")
FORMATS = (
    HERMES,
    MISTRAL,
    MISTRAL_ARGS,
    LLAMA3,
    DEEPSEEK,
    DEEPSEEK_V31,
    QWEN3_CODER,
    GLM,
    MINIMAX,
    GRANITE,
    PHI,
    COHERE,
    KIMI,
    GLM4,
    HARMONY,
)


def detect(template: str) -> ToolFormat | None:
    """The format in a chat template's source; None for one without tools, or with an unknown format."""
    if DEEPSEEK.opening in template:  # those that its makers ship show calls, and nothing of the tools
        return DEEPSEEK if "```json" in template else DEEPSEEK_V31
    if "tools" not in template:
        return None
    if "minimax:tool_call>" in template:
        return MINIMAX if MINIMAX.trigger in template and MINIMAX.begin in template else None
    if "<tool_call>" in template:
        return _tagged(template)
    if "[TOOL_CALLS]" in template:
        return _mistral(template)
    for format in (KIMI, COHERE, GRANITE):
        if format.trigger in template:
            return format
    if "<|observation|>" in template and "metadata" in template:
        return GLM4
    if "<|tool|>" in template and "<|/tool|>" in template:
        return PHI
    if "<|channel|>" in template and "to=" in template and "functions." in template:
        return HARMONY
    if "<|start_header_id|>" in template and '"parameters": ' in template.replace('\\"', '"'):
        return LLAMA3
    return None


def _mistral(template: str) -> ToolFormat:
    if "[ARGS]" not in template:
        return replace(MISTRAL, opening="[TOOL_CALLS][") if "[TOOL_CALLS][" in template else MISTRAL
    return replace(MISTRAL_ARGS, middle=f"[CALL_ID]{ID}[ARGS]", id="[a-zA-Z0-9]{9}") if "[CALL_ID]" in template else MISTRAL_ARGS


def _tagged(template: str) -> ToolFormat | None:
    if "<function=" in template:
        return QWEN3_CODER if "<parameter=" in template else None
    if "<arg_key>" in template:
        return GLM_COMPACT if "</arg_key><arg_value>" in template else GLM
    return HERMES if "arguments" in template else None
