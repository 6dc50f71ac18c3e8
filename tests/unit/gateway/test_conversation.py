"""Messages and tools through templates of the kinds that models have, with a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Conversation, JsonAnswer, RequestedFunction, Tools, call_id, converse
from shoal.text.answer_format import AnswerFormat
from shoal.text.tokenizer import Tokenizer
from shoal.text.tools import HERMES, LLAMA3, MISTRAL
from tests.support.engine import FakeEngine
from tests.support.letters import accepts
from tests.support.templates import CHATML, QWEN
from tests.support.vocabularies import byte_level

# As Mistral's: ids of nine characters, calls as a list after a special token.
NINE = """{% if tools %}[AVAILABLE_TOOLS]{{ tools | map(attribute='function') | list | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
    {%- if m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
        {%- endfor %}
        {{- ']' }}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
        {{- '[TOOL_RESULTS]' + m.name + ' ' + m.tool_call_id + ' ' + m.content }}
    {%- else %}
        {{- '[INST]' + m.content + '[/INST]' }}
    {%- endif %}
{%- endfor %}"""
# As Llama's: one call, of bare JSON.
ONE = """{% for t in tools or [] %}{{ t | tojson(indent=4) }}
{% endfor %}{# Respond with {"name": …, "parameters": …} #}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>' }}
    {%- if 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}{% endif %}
        {{- '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' + (m.tool_calls[0].function.arguments | tojson) + '}' }}
    {%- else %}
        {{- m.content | trim }}
    {%- endif %}
{%- endfor %}"""

ROUTE = {"type": "object", "properties": {"to": {"enum": ["é", "b"]}}, "required": ["to"], "additionalProperties": False}
TOOLS = Tools([RequestedFunction("route", "Finds one.", ROUTE, True, "tools.0")])
CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "route", "arguments": {"to": "é"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "far", "tool_call_id": "call_0123456789"},
]


def engine(source: str, *special: str) -> FakeEngine:
    made = FakeEngine()
    meta = byte_level(special=("<|im_start|>", *special, "<|im_end|>"), **{"tokenizer.chat_template": source})
    made.tokenizer = Tokenizer.open(Path("m"), meta)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def shown(made: FakeEngine, asked: Conversation) -> str:
    return b"".join(map(made.tokenizer.token_bytes, asked.prompt)).decode()


def test_hermes_has_arguments_as_objects() -> None:
    made = engine(QWEN)
    asked = converse(made, TALK, TOOLS, None)
    assert asked.format == AnswerFormat(HERMES, names=("route",))
    assert '<tool_call>\n{"name": "route", "arguments": {"to": "é"}}\n</tool_call>' in shown(made, asked)
    assert json.dumps(TOOLS.functions[0].told, ensure_ascii=False) in shown(made, asked)
    assert "<tool_response>\nfar\n</tool_response>" in shown(made, asked)


def test_mistral_has_ids_of_nine_characters_that_match() -> None:
    made = engine(NINE, "[TOOL_CALLS]")
    asked = converse(made, TALK, TOOLS, None)
    text = shown(made, asked)
    id = json.loads(text.split("[TOOL_CALLS] ")[1].split("[TOOL_RESULTS]")[0])[0]["id"]
    assert f"[TOOL_RESULTS]route {id} far" in text
    assert (asked.format, asked.markers) == (AnswerFormat(MISTRAL), (made.tokenizer.special["[TOOL_CALLS]"],))


def test_llama_has_parameters() -> None:
    made = engine(ONE)
    asked = converse(made, TALK, TOOLS, None)
    assert asked.format == AnswerFormat(LLAMA3)
    assert '{"name": "route", "parameters": {"to": "é"}}' in shown(made, asked)
    assert accepts(asked.grammar, '{"name": "route", "parameters": {"to": "b"}}')


@pytest.mark.parametrize(
    "written", ["'<' + c.function.arguments + '>'", "'<' ~ c.function.arguments ~ '>'", "'<' + (c.function.arguments | tojson) + '>'"]
)
def test_arguments_are_json_however_a_template_writes_them(written: str) -> None:
    """DeepSeek's takes them for text, others for an object."""
    made = engine(QWEN + "{% for m in messages if m.tool_calls %}{% for c in m.tool_calls %}{{ " + written + " }}{% endfor %}{% endfor %}")
    assert '<{"to": "é"}>' in shown(made, converse(made, TALK, TOOLS, None))


def test_what_a_template_refuses_is_an_error_of_the_messages() -> None:
    twice = [TALK[0], {**TALK[1], "tool_calls": [CALL, {**CALL, "id": "b"}]}]
    with pytest.raises(InvalidRequest, match="one call at once") as caught:
        converse(engine(ONE), twice, TOOLS, None)
    assert caught.value.param == "messages"


def test_without_tools_there_is_nothing_to_look_for() -> None:
    asked = converse(engine(QWEN, "<tool_call>"), TALK[:1], Tools([]), None)
    assert (asked.grammar, asked.format, asked.markers) == ("", None, ())


def test_markers_of_a_format_that_are_special_tokens_are_seen() -> None:
    made = engine(QWEN, "<tool_call>", "</tool_call>", "<think>")
    asked = converse(made, TALK[:1], TOOLS, None)
    assert asked.markers == tuple(made.tokenizer.special[name] for name in ("<tool_call>", "</tool_call>"))


def test_an_answer_in_json_is_its_grammar() -> None:
    asked = converse(engine(CHATML), TALK[:1], Tools([]), JsonAnswer(ROUTE, True, "text"))
    assert accepts(asked.grammar, '{"to": "b"}')
    assert not accepts(asked.grammar, '{"to": "c"}')


def test_a_schema_that_cannot_be_held_is_refused_where_it_stands() -> None:
    with pytest.raises(InvalidRequest) as caught:
        converse(engine(CHATML), TALK[:1], Tools([]), JsonAnswer({"type": "nothing"}, True, "text.format"))
    assert caught.value.param == "text.format"


def test_an_id_of_a_call_depends_on_its_place_alone() -> None:
    ids = {call_id(answer, choice, call) for answer in ("a", "b") for choice in (0, 1) for call in (0, 1)}
    assert len(ids) == 8
    assert call_id("a", 0, 0) in ids
