"""Answers as trained models write them, through tokenizers of their shapes: what the grammar lets through, and what is read of it.

The tokens of an answer are those that the tokenizer makes of it, as a model was trained to write them: `<tool_call>` is one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from shoal.gateway.answers.conversation import Conversation, JsonAnswer, RequestedFunction, Tools, converse
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta, ReasoningDelta
from shoal.text.detokenizer import TextStream
from shoal.text.tokenizer import Tokenizer
from tests.support.deltas import joined
from tests.support.engine import FakeEngine
from tests.support.vocabularies import USER_DEFINED, byte_level

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
FUNCTIONS = [RequestedFunction("weather", "The weather.", CITY, False, "tools.0"), RequestedFunction("now", None, None, False, "tools.1")]
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Shape:
    """A tokenizer and its template. plain: tokens of its own that are not marked special."""

    template: str
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    plain: tuple[str, ...] = ()
    calls: dict[str, str] = field(default_factory=dict)
    """Texts that call weather in Paris for 3 days, and the same twice, as the model writes them."""
    thought: str = ""
    """What reasoning comes between: {} is it."""

    @property
    def engine(self) -> FakeEngine:
        meta = byte_level(special=(self.special[0], *self.plain, *self.special[1:]), **{"tokenizer.chat_template": self.template})
        tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
        meta["tokenizer.ggml.token_type"] = [USER_DEFINED if t in self.plain else kind for t, kind in zip(tokens, types, strict=True)]
        made = FakeEngine(longest=10_000)
        made.tokenizer = Tokenizer.open(Path("m"), meta)  # pyright: ignore[reportAttributeAccessIssue]
        return made


def _loop(begin: str, end: str) -> str:
    return "{% for m in messages %}" + begin + "{{ m.content }}" + end + "{% endfor %}"


TOLD = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
CODER_CALL = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)
GLM_CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"
PARIS = '{"city": "Paris", "days": 3}'
SEEK = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>'
SEEK31 = f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>"
SEEK_TOKENS = tuple(f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"))
GLM47_CALL = (
    "<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
)
INVOKED = '<invoke name="weather">\n<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
LISTED = f'{{"name": "weather", "arguments": {PARIS}}}'
ACTION = f'{{"tool_call_id": "0", "tool_name": "weather", "parameters": {PARIS}}}'
KIMI = f"<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>"
KIMI_TOKENS = tuple(
    f"<|tool_{name}|>" for name in ("calls_section_begin", "calls_section_end", "call_begin", "call_argument_begin", "call_end")
)
ROLES = ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>", "<|end_of_text|>")
COMMAND = tuple(f"<|{end}_{what}|>" for what in ("THINKING", "RESPONSE", "ACTION") for end in ("START", "END"))
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
SHAPES = {
    "qwen2.5": Shape(
        TOLD + '<tool_call>{"name": "", "arguments": {}}</tool_call>' + _loop("<|im_start|>", "<|im_end|>"),
        plain=("<tool_call>", "</tool_call>"),
        calls={"one": HERMES_CALL, "two": f"{HERMES_CALL}\n{HERMES_CALL}"},
    ),
    "qwen3": Shape(
        TOLD + '<tool_call>{"name": "", "arguments": {}}</tool_call>' + _loop("<|im_start|>", "<|im_end|>") + "{# </think> #}",
        plain=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        calls={"one": HERMES_CALL, "two": f"{HERMES_CALL}\n{HERMES_CALL}"},
        thought="<think>\n{}\n</think>\n\n",
    ),
    "hermes without tokens of its own": Shape(
        TOLD + '<tool_call>{"name": "", "arguments": {}}</tool_call><think>' + _loop("<|im_start|>", "<|im_end|>"),
        calls={"one": HERMES_CALL, "two": f"{HERMES_CALL}\n{HERMES_CALL}"},
        thought="<think>\n{}\n</think>\n\n",
    ),
    "qwen3-coder": Shape(
        TOLD + "<tool_call>\n<function=f>\n<parameter=p>" + _loop("<|im_start|>", "<|im_end|>"),
        plain=("<tool_call>", "</tool_call>"),
        calls={"one": CODER_CALL, "two": f"{CODER_CALL}\n{CODER_CALL}"},
    ),
    "glm": Shape(
        TOLD + "<tool_call>{name}\n<arg_key>k</arg_key>" + _loop("<|im_start|>", "<|im_end|>") + "{# <think> #}",
        plain=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"),
        calls={"one": GLM_CALL, "two": f"{GLM_CALL}\n{GLM_CALL}"},
        thought="<think>{}</think>\n",
    ),
    "llama3": Shape(
        TOLD + '{# {"name": , "parameters": } #}' + _loop("<|start_header_id|>", "<|eot_id|>"),
        ("<|begin_of_text|>", "<|start_header_id|>", "<|python_tag|>", "<|eom_id|>", "<|eot_id|>"),
        calls={
            "one": f'{{"name": "weather", "parameters": {PARIS}}}',
            "tag": f'<|python_tag|>{{"name": "weather", "parameters": {PARIS}}}',
        },
    ),
    "mistral": Shape(
        TOLD + "{# [TOOL_CALLS] [ #}" + _loop("[INST]", "[/INST]"),
        ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "</s>"),
        calls={
            "one": f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}]',
            "two": f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}, {{"name": "weather", "arguments": {PARIS}}}]',
        },
    ),
    "mistral v11": Shape(
        TOLD + "{# [TOOL_CALLS] [ARGS] [THINK] #}" + _loop("[INST]", "[/INST]"),
        ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "</s>"),
        calls={"one": f"[TOOL_CALLS]weather[ARGS]{PARIS}", "two": f"[TOOL_CALLS]weather[ARGS]{PARIS}" * 2},
        thought="[THINK]{}[/THINK]",
    ),
    "deepseek r1": Shape(
        TOLD + "{# <｜tool▁calls▁begin｜> ```json #}" + _loop("<｜User｜>", "") + "<｜Assistant｜><think>\n",
        ("<｜begin｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end｜>"),
        plain=(*SEEK_TOKENS, "<think>", "</think>"),
        calls={
            "one": f"<｜tool▁calls▁begin｜>{SEEK}<｜tool▁calls▁end｜>",
            "two": f"<｜tool▁calls▁begin｜>{SEEK}\n{SEEK}<｜tool▁calls▁end｜>",
        },
        thought="{}\n</think>\n\n",
    ),
    "deepseek v3.1": Shape(
        TOLD + "{# <｜tool▁calls▁begin｜> #}" + _loop("<｜User｜>", ""),
        ("<｜begin｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end｜>"),
        plain=SEEK_TOKENS,
        calls={
            "one": f"<｜tool▁calls▁begin｜>{SEEK31}<｜tool▁calls▁end｜>",
            "two": f"<｜tool▁calls▁begin｜>{SEEK31}{SEEK31}<｜tool▁calls▁end｜>",
        },
    ),
    "glm-4": Shape(
        TOLD + "{# <|observation|> metadata #}" + _loop("<|user|>", ""),
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        calls={"one": f"weather\n{PARIS}"},
    ),
    "glm-4.7": Shape(
        TOLD + "<tool_call>{name}<arg_key>k</arg_key><arg_value>v</arg_value>" + _loop("<|im_start|>", "<|im_end|>") + "{# <think> #}",
        plain=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<think>", "</think>"),
        calls={"one": GLM47_CALL, "two": GLM47_CALL * 2},
        thought="\n<think>{}</think>",
    ),
    "minimax-m2": Shape(
        TOLD + '<minimax:tool_call>\n<invoke name="f">\n' + _loop("]~b]", "[e~[") + "<think>\n",
        ("]~!b[", "]~b]", "[e~["),
        plain=("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
        calls={
            "one": f"<minimax:tool_call>\n{INVOKED}</minimax:tool_call>",
            "two": f"<minimax:tool_call>\n{INVOKED}{INVOKED}</minimax:tool_call>",
        },
        thought="{}\n</think>\n\n",
    ),
    "granite 3.3": Shape(
        TOLD
        + "respond with <|tool_call|>, between <think></think> and <response></response>"
        + _loop("<|start_of_role|>", "<|end_of_text|>"),
        ROLES,
        calls={"one": f"<|tool_call|>[{LISTED}]", "two": f"<|tool_call|>[{LISTED}, {LISTED}]"},
        thought="<think>{}</think>\n",
    ),
    "granite 3.2": Shape(
        TOLD + "<|tool_call|> 'Here is my thought process:' 'Here is my response:'" + _loop("<|start_of_role|>", "<|end_of_text|>"),
        ROLES,
        calls={"one": f"<|tool_call|>[{LISTED}]", "two": f"<|tool_call|>[{LISTED}, {LISTED}]"},
        thought="Here is my thought process: {} Here is my response: ",
    ),
    "phi-4-mini": Shape(
        "{% for m in messages %}{% if 'tools' in m %}{{ m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' }}{% endif %}{% endfor %}"
        + _loop("<|user|>", "<|end|>"),
        ("<|user|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|end|>"),
        calls={"one": f"<|tool_call|>[{LISTED}]<|/tool_call|>", "two": f"<|tool_call|>[{LISTED}, {LISTED}]<|/tool_call|>"},
    ),
    "command r7b": Shape(
        TOLD + "<|START_THINKING|><|END_THINKING|><|START_ACTION|>" + _loop("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|>", *COMMAND, "<|END_OF_TURN_TOKEN|>"),
        calls={
            "one": f"<|START_ACTION|>[\n    {ACTION}\n]<|END_ACTION|>",
            "two": f"<|START_ACTION|>[\n    {ACTION},\n    {ACTION.replace('0', '1')}\n]<|END_ACTION|>",
        },
        thought="<|START_THINKING|>{}<|END_THINKING|>",
    ),
    "kimi k2": Shape(
        TOLD + "{# <|tool_calls_section_begin|> #}" + _loop("<|im_user|>", "<|im_end|>"),
        ("<|im_user|>", *KIMI_TOKENS, "<|im_end|>"),
        calls={
            "one": f"<|tool_calls_section_begin|>{KIMI}<|tool_calls_section_end|>",
            "two": f"<|tool_calls_section_begin|>{KIMI}{KIMI.replace(':0', ':1')}<|tool_calls_section_end|>",
        },
    ),
    "mistral small 3.2": Shape(
        TOLD + "{# [TOOL_CALLS] [CALL_ID] [ARGS] #}" + _loop("[INST]", "[/INST]"),
        ("<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "</s>"),
        calls={
            "one": f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{PARIS}",
            "two": f"[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{PARIS}" * 2,
        },
    ),
    "gpt-oss": Shape(
        TOLD
        + "{# <|channel|>analysis #}{% if false %}{{ 'to=' + 'functions.' }}{% endif %}"
        + _loop("<|start|>user<|message|>", "<|end|>")
        + "<|start|>assistant",
        HARMONY,
        calls={
            "one": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}",
            "role": f" to=functions.weather<|channel|>commentary json<|message|>{PARIS}",
        },
        thought="<|channel|>analysis<|message|>{}<|end|><|start|>assistant",
    ),
}
CASES = [(name, kind, thought) for name, shape in SHAPES.items() for kind in shape.calls for thought in {"", shape.thought}]


def written(asked: Conversation, engine: FakeEngine, text: str) -> tuple[bool, list[Delta]]:
    """Whether an answer is what its grammar asks for, and what it is read as."""
    tokenizer: Any = engine.tokenizer
    tokens = tokenizer.encode(text, bos=False)
    fits = True
    if asked.grammar:
        matcher = LLMatcher(tokenizer.for_grammars(tokenizer.size), asked.grammar, log_level=0)
        fits = matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
        assert not matcher.is_error(), matcher.get_error()
    stream = TextStream(tokenizer, asked.prompt, (), asked.markers)
    if asked.format is None:
        return fits, [ContentDelta("".join(map(stream.push, tokens)))]
    parser = asked.format.parser()
    said = [d for token in tokens for d in parser.push(stream.push(token))]
    return fits, joined([*said, *parser.push(stream.finish()), *parser.finish()])


def calls(count: int) -> list[Delta]:
    return [new for i in range(count) for new in (CallBegun(i, "weather"), Arguments(i, PARIS))]


@pytest.mark.parametrize(("name", "kind", "thought"), CASES)
@pytest.mark.parametrize("must", [False, True])
def test_calls_are_let_through_and_read(name: str, kind: str, thought: str, must: bool) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    asked = converse(engine, ASKED, Tools(FUNCTIONS, must=must), None)
    if not thought and asked.format is not None and asked.format.opened:
        thought = "\n</think>\n\n"
    fits, read = written(asked, engine, thought.format("hm") + shape.calls[kind])
    assert fits
    assert read == [*([ReasoningDelta("hm")] if "{}" in thought else []), *calls(2 if kind == "two" else 1)]


@pytest.mark.parametrize("name", SHAPES)
def test_where_calls_may_be_text_may_be_and_where_they_must_it_may_not(name: str) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    text = (
        (shape.thought.format("hm") if shape.thought else "") + ("<|channel|>final<|message|>" if name == "gpt-oss" else "") + "It rains."
    )
    fits, read = written(converse(engine, ASKED, Tools(FUNCTIONS), None), engine, text)
    assert (fits, read) == (True, [*([ReasoningDelta("hm")] if shape.thought else []), ContentDelta("It rains.")])
    assert not written(converse(engine, ASKED, Tools(FUNCTIONS, must=True), None), engine, text)[0]


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.thought])
def test_an_answer_in_json_comes_after_reasoning(name: str) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    asked = converse(engine, ASKED, Tools([]), JsonAnswer(CITY, True, "response_format"))
    head = "<|channel|>final <|constrain|>json<|message|>" if name == "gpt-oss" else ""
    assert written(asked, engine, shape.thought.format("hm") + head + PARIS) == (True, [ReasoningDelta("hm"), ContentDelta(PARIS)])
    assert not written(asked, engine, shape.thought.format("hm") + head + "{}")[0]


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.thought])
def test_without_tools_reasoning_is_told_too(name: str) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    text = shape.thought.format("hm") + ("<|channel|>final<|message|>" if name == "gpt-oss" else "") + "It rains."
    assert written(converse(engine, ASKED, Tools([]), None), engine, text) == (True, [ReasoningDelta("hm"), ContentDelta("It rains.")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("granite 3.3", "<think>hm</think><response>It rains.</response>"),
        ("command r7b", "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>It rains.<|END_RESPONSE|>"),
        ("command r7b", "<|START_RESPONSE|>It rains.<|END_RESPONSE|>"),
        ("command r7b", "<|START_RESPONSE|>It rains."),
    ],
)
@pytest.mark.parametrize("tools", [[], FUNCTIONS])
def test_marks_around_an_answer_are_no_content(name: str, text: str, tools: list[RequestedFunction]) -> None:
    engine = SHAPES[name].engine
    fits, read = written(converse(engine, ASKED, Tools(tools), None), engine, text)
    assert (fits, read) == (True, [*([ReasoningDelta("hm")] if "hm" in text else []), ContentDelta("It rains.")])


@pytest.mark.parametrize("text", ["weather is fine", "weather\nis fine", "Rain\n{}", "weather", "\nIt rains."])
def test_the_name_of_a_tool_is_text_unless_arguments_follow(text: str) -> None:
    engine = SHAPES["glm-4"].engine
    assert written(converse(engine, ASKED, Tools(FUNCTIONS), None), engine, text) == (True, [ContentDelta(text)])
    assert not written(converse(engine, ASKED, Tools(FUNCTIONS), None), engine, 'weather\n{"days": "x"}')[0]


@pytest.mark.parametrize("name", SHAPES)
def test_one_call_where_they_may_not_be_parallel(name: str) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    asked = converse(engine, ASKED, Tools(FUNCTIONS, must=True, parallel=False), None)
    before = "\n</think>\n\n" if asked.format is not None and asked.format.opened else ""
    assert written(asked, engine, before + shape.calls["one"])[0]
    assert "two" not in shape.calls or not written(asked, engine, before + shape.calls["two"])[0]


def test_an_answer_of_channels_ends_where_they_do() -> None:
    """`<|end|>` ends a message there, and an answer elsewhere."""
    tokenizer: Any = SHAPES["gpt-oss"].engine.tokenizer
    assert {HARMONY[5], HARMONY[6]} == {t for t in HARMONY if tokenizer.special[t] in tokenizer.stop_tokens}


def test_channels_are_shown_what_was_thought() -> None:
    shape = SHAPES["gpt-oss"]
    engine = Shape(shape.template + "{% for m in messages %}{{ m.thinking }}{% endfor %}", HARMONY).engine
    talk = [*ASKED, {"role": "assistant", "content": "yes", "reasoning_content": "they greet"}, *ASKED]
    asked = converse(engine, talk, Tools([]), None)
    assert b"they greet" in b"".join(map(engine.tokenizer.token_bytes, asked.prompt))


def test_a_preamble_is_content_beside_the_call() -> None:
    engine = SHAPES["gpt-oss"].engine
    asked = converse(engine, ASKED, Tools(FUNCTIONS), None)
    text = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + SHAPES["gpt-oss"].calls["one"]
    assert written(asked, engine, text) == (True, [ContentDelta("I look."), *calls(1)])


LOOSE = [
    f'{{"name": "weather", "arguments": {PARIS}}}',
    f'{{{{"name": "weather", "arguments": {PARIS}}}}}',
    f'```json\n{{\n  "name": "weather",\n  "arguments": {PARIS}\n}}\n```',
    f'```\n{{"name": "weather", "arguments": {PARIS}}}\n```',
]


@pytest.mark.parametrize("text", LOOSE)
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "hermes without tokens of its own"])
def test_a_call_without_its_marker_is_one(name: str, text: str) -> None:
    shape, engine = SHAPES[name], SHAPES[name].engine
    asked = converse(engine, ASKED, Tools(FUNCTIONS), None)
    thought = shape.thought.format("hm")
    assert written(asked, engine, thought + text) == (True, [*([ReasoningDelta("hm")] if thought else []), *calls(1)])
    assert not written(asked, engine, thought + text.replace("3", '"x"'))[0]


@pytest.mark.parametrize(
    "text", ['{"name": "Anna", "arguments": {}}', '```json\n{"name": "weather"}', '{"a": 1}', "```python\nx\n```", "{", "```js"]
)
def test_json_that_is_no_call_is_content(text: str) -> None:
    engine = SHAPES["qwen2.5"].engine
    assert written(converse(engine, ASKED, Tools(FUNCTIONS), None), engine, text)[1] == [ContentDelta(text)]


@pytest.mark.parametrize("name", ["qwen3-coder", "glm"])
@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "string"}, 'a "b"\n\\c', '"a \\"b\\"\\n\\\\c"'),
        ({"type": "string"}, "3", '"3"'),
        ({"enum": ["red", "green"]}, "red", '"red"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "nullable", '"nullable"'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "nu", '"nu"'),
        ({"type": "boolean"}, "true", "true"),
        ({"type": "array", "items": {"$ref": "#/$defs/n"}}, "[1, 2]", "[1, 2]"),
        ({"$ref": "#/$defs/c"}, "blue", '"blue"'),
    ],
)
def test_values_in_tags_are_json_of_their_schema(name: str, schema: dict[str, Any], value: str, said: str) -> None:
    engine = SHAPES[name].engine
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": {"n": {"type": "integer"}, "c": {"enum": ["blue"]}}}
    asked = converse(engine, ASKED, Tools([RequestedFunction("f", None, whole, False, "tools.0")], must=True), None)
    texts = {
        "qwen3-coder": f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n</tool_call>",
        "glm": f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>",
    }
    fits, read = written(asked, engine, texts[name])
    assert fits
    assert read == [CallBegun(0, "f"), Arguments(0, f'{{"x": {said}}}')]
    json.loads(f'{{"x": {said}}}')
