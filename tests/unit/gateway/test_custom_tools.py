"""Custom tools: text instead of JSON, maybe held to a grammar, through chat and responses."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from openai.types.responses import Response

from shoal.gateway.answers.custom import Input
from shoal.gateway.endpoints.chat.answer import ChatAnswer
from shoal.gateway.endpoints.responses.answer import ResponseAnswer
from shoal.text import grammar
from shoal.text.answer_format import AnswerFormat
from shoal.text.answer_grammar import answer_grammar
from shoal.text.lark import inside_json, inside_json_regex
from shoal.text.tools import HERMES, LLAMA3, MISTRAL, ToolFormat, ToolFunction
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says
from tests.support.http import CHAT, events, fetch, refused
from tests.support.openai_types import OURS, in_order, parsed_events, strictly

RESPONSES = "/v1/responses"
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
update_hunk: "*** Update File: " filename LF change_line+

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
change_line: ("+" | "-" | " ") /(.*)/ LF  // as in a diff

%import common.LF
"""
"""Like what coding agents hold patches to."""
PATCHED = '*** Begin Patch\n*** Add File: a/b.py\n+print("é\\n")\n+\n*** Update File: x\n-\ta\n+\\b"\n*** End Patch\n'
SUM = """
start: term (ADD term)*
term: INT | "(" start ")"
ADD: "+" | "-"
%import common (INT, WS_INLINE)
%ignore WS_INLINE
"""


def accepts(source: str, text: str) -> bool:
    matcher = LLMatcher(grammar._bytes(), LLMatcher.grammar_from_lark(source))
    raw = text.encode()
    return matcher.try_consume_tokens(list(raw)) == len(raw) and matcher.is_accepting()


def inside(source: str, text: str) -> bool:
    """Whether the grammar takes the text inside a JSON string."""
    framed = f'start: "{{" inner "}}"\ninner: %lark {{\n{inside_json(source)}\n}}'
    return accepts(framed, "{" + json.dumps(text, ensure_ascii=False)[1:-1] + "}")


# Grammars inside JSON


@pytest.mark.parametrize(
    ("source", "text", "taken"),
    [
        (PATCH, PATCHED, True),
        (PATCH, PATCHED.replace("+print", "print"), False),
        (PATCH, PATCHED.replace("*** End", "** End"), False),
        (SUM, "1 + (23-4)", True),
        (SUM, "1\t+ 2", True),
        (SUM, "1 ++ 2", False),
        (SUM, "1 2", False),
        ('start: "a\\"b\\\\" /[^x]{2,3}/', 'a"b\\\n"', True),
        ('start: "a\\"b\\\\" /[^x]{2,3}/', 'a"b\\\nx', False),
        ('start: "SELECT"i " " /\\S+/', 'select "a"', True),
        ("start: /[^\\/]+\\/[a-c]/i", 'x"y/C', True),
        ("start: /a.b/s", "a\nb", True),
        ("start: /a.b/", "a\nb", False),
        ('start: A~2\nA: "é" | /\\p{Lu}/', "éÉ", True),
        ("start: /[日本]+/", "日本", True),
        ("start: /[日本]+/", "月", False),
        ("start: /[а-я]/i", "Ж", True),
        ("start: /[\\u0430-\\u044f]/", "ж", True),
        ("start: /[\\U0001F600-\\U0001F64F]\\U0001F600/", "🙂😀", True),
        ("start: /\\pL+/", "éß", True),
        ("start: /\\p{P}\\P{L}/", '"\n', True),
        ("start: /[\\\\\\/]+/", "\\/", True),
        ('start: "a\\/b"', "a/b", True),
        ('start: "\\ud83d\\ude42"', "🙂", True),
        ('start: "ß"i', "SS", False),
        ('start: "a" # %ignore', "a", True),
        ("start: /a%ignore/", "a%ignore", True),
        ('start: "a"+\n%ignore " " | "-"\n | /_/', "a -_a", True),
        ('start: "a"+\n%ignore " "+', "a  a", True),
        ('start: "a"+\n%ignore " " | "b"', "b", False),
        ('start: "}" /[{}]/', "}{", True),
    ],
)
def test_what_a_grammar_takes_it_takes_inside_json(source: str, text: str, taken: bool) -> None:
    assert inside(source, text) == taken


PATTERNS = [r"[a-c\"]+", r"(?:a|\\|\n)*b", r'"[^"\\]*"', r"\w+\s\d?", r"[^\n]{1,4}", r"(a+|b*)c?", r".*", r"[\t -~]*", r"\S\W"]
PATTERNS += [r"[日本]+", r"[а-я]", r"[\u0430-\u044f]", r"[^а-я\n]*", r"[\n\"日]+", r"\p{P}+"]


@given(st.sampled_from(PATTERNS), st.text(alphabet='ab c"\\\n\t1é/жя日本🙂', max_size=6))
@settings(max_examples=200)
def test_regular_expressions_take_inside_json_what_they_take_outside(pattern: str, text: str) -> None:
    outside = LLMatcher(grammar._bytes(), LLMatcher.grammar_from_regex(pattern))
    raw = text.encode()
    taken = outside.try_consume_tokens(list(raw)) == len(raw) and outside.is_accepting()
    framed = f'start: "{{" inner "}}"\ninner: %lark {{\nstart: {inside_json_regex(pattern)}\n}}'
    assert accepts(framed, "{" + json.dumps(text, ensure_ascii=False)[1:-1] + "}") == taken


@pytest.mark.parametrize(
    "source",
    [
        "start: /(?=a)b/",
        "start: /a\\b/",
        "start: /^a/",
        "%declare X\nstart: X",
        "%import common.NOPE\nstart: NOPE",
        'start: "\\x01"',
        "start: /[a[b]]/",
        "start: /[a||b]/",
        "start: /[\\x01]/",
        "start: /\\x{41}/",
        "start: /\\y/",
        'start: A & B\nA: "a"\nB: "b"',
        'start: ~"a"',
    ],
)
def test_what_cannot_be_written_inside_json_is_said(source: str) -> None:
    with pytest.raises(ValueError, match=r"not supported"):
        inside_json(source)


@pytest.mark.parametrize("source", ["start: /a", 'start: "a', "start: /[a/", "start: " + "/[" * 20_000, 'start: "' + '\\"' * 20_000])
def test_what_has_no_end_is_said(source: str) -> None:
    with pytest.raises(ValueError, match=r"has no end"):
        inside_json(source)


@pytest.mark.parametrize("source", ["start: /" + "[a]" * 2000, "start: " + "!" * 60_000, "start: " + "1" * 60_000])
def test_a_source_is_read_in_steps_of_its_length(source: str) -> None:
    with contextlib.suppress(ValueError):
        inside_json(source)


@pytest.mark.parametrize("pattern", ["[\\n]" * 16_000, "".join(f"[{chr(0x4E00 + i)}]" for i in range(16_000))])
def test_many_classes_are_read_soon(pattern: str) -> None:
    assert inside_json_regex(pattern).count("(") == 16_001


@pytest.mark.parametrize("source", ['start: "\\ud800"', "start: /\\ud800/", "start: /\ud800/"])
def test_half_a_character_is_none(source: str) -> None:
    with pytest.raises(ValueError, match=r"surrogate U\+D800 is not a character"):
        inside_json(source)


# A call's text as it comes


@given(st.text(), st.data())
def test_however_it_is_cut_the_text_comes_out(text: str, data: st.DataObject) -> None:
    whole = json.dumps({"input": text}, ensure_ascii=data.draw(st.booleans()))
    out, reader = "", Input()
    while whole:
        size = data.draw(st.integers(1, 7))
        out += reader.push(whole[:size])
        whole = whole[size:]
    assert out == text


# Through the endpoints


PLAIN = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command"}}
GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": PATCH}}
PATCHES = {"type": "custom", "custom": {"name": "apply_patch", "format": GRAMMAR}}
FLAT = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits",
    "format": {"type": "grammar", "syntax": "lark", "definition": PATCH},
}


def call(name: str, text: str, format: ToolFormat = HERMES) -> str:
    arguments = json.dumps({"input": text}, ensure_ascii=False)
    return format.opening + format.begin + name + format.middle + arguments + format.end + format.closing


def chat(engine: FakeEngine, **fields: Any) -> httpx.Response:
    answer = fetch(app_of(engine), "POST", CHAT, json={"messages": [{"role": "user", "content": "Hi"}], **fields})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("format", [HERMES, MISTRAL, LLAMA3], ids=lambda format: format.name)
def test_chat_tells_the_text_whole_and_streamed(format: ToolFormat) -> None:
    engine = FakeEngine(says(call("apply_patch", PATCHED, format)), tools=format)
    whole = chat(engine, tools=[PATCHES], tool_choice="required").json()
    ChatAnswer.model_validate(whole)
    message = whole["choices"][0]["message"]
    (made,) = message["tool_calls"]
    assert (made["type"], made["custom"]) == ("custom", {"name": "apply_patch", "input": PATCHED})
    chunks = events(chat(engine, tools=[PATCHES], tool_choice="required", stream=True))
    deltas = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas[0]["id"].startswith("call_") and made["id"].startswith("call_")
    assert (deltas[0]["type"], deltas[0]["custom"]["name"]) == ("custom", "apply_patch")
    assert "".join(delta["custom"]["input"] for delta in deltas) == PATCHED
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_model_is_told_and_held_to_the_grammar() -> None:
    engine = FakeEngine(says(call("shell", "ls")), tools=HERMES)
    chat(engine, tools=[PATCHES, PLAIN], tool_choice={"type": "custom", "custom": {"name": "apply_patch"}})
    told = engine.tokenizer.decode(engine.asked.prompt)
    assert "begin_patch" in told and "Runs a command" in told
    asked = engine.asked.sampling.grammar
    for text, taken in ((call("apply_patch", PATCHED), True), (call("apply_patch", "rm -rf /"), False), (call("shell", "ls"), False)):
        matcher, raw = LLMatcher(grammar._bytes(), asked), text.encode()
        assert (matcher.try_consume_tokens(list(raw)) == len(raw) and matcher.is_accepting()) == taken, text


def test_a_regular_expression_holds_the_text() -> None:
    tool = {
        "type": "custom",
        "custom": {"name": "when", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": r"^\d{4}\n?$"}}},
    }
    engine = FakeEngine(tools=HERMES)
    chat(engine, tools=[tool], tool_choice="required")
    for text, taken in (("1999\n", True), ("1999", True), ("199", False), ("1999 ", False)):
        matcher, raw = LLMatcher(grammar._bytes(), engine.asked.sampling.grammar), call("when", text).encode()
        assert (matcher.try_consume_tokens(list(raw)) == len(raw) and matcher.is_accepting()) == taken, text


def test_responses_tell_the_text_whole_and_streamed() -> None:
    function = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    body = {"input": "Hi", "tools": [FLAT, function], "tool_choice": {"type": "custom", "name": "apply_patch"}}
    app = app_of(FakeEngine(says(call("apply_patch", PATCHED)), tools=HERMES))
    raw = fetch(app, "POST", RESPONSES, json=body).json()
    ResponseAnswer.model_validate(raw)
    (item,) = strictly(Response, raw, *OURS, "status").output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", PATCHED)
    told = parsed_events(fetch(app, "POST", RESPONSES, json={**body, "stream": True}))
    in_order(told)
    assert "".join(event.delta for event in told if event.type == "response.custom_tool_call_input.delta") == PATCHED


def test_calls_and_results_come_back() -> None:
    engine = FakeEngine(tools=HERMES)
    made = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls\n"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "a"},
    ]
    chat(engine, messages=messages, tools=[PLAIN])
    by_chat = engine.tokenizer.decode(engine.asked.prompt)
    assert '"arguments": {"input": "ls\\n"}' in by_chat
    engine = FakeEngine(tools=HERMES)
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "custom_tool_call", "call_id": "c", "name": "shell", "input": "ls\n", "id": None, "namespace": None},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "a"},
    ]
    flat = {"type": "custom", **PLAIN["custom"]}
    answer = fetch(app_of(engine), "POST", RESPONSES, json={"input": items, "tools": [flat]})
    assert answer.status_code == 200, answer.text
    assert engine.tokenizer.decode(engine.asked.prompt) == by_chat


BAD = {
    "lark": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /(?=a)/"}},
    "no rule": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: nothing"}},
    "regex": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a\\bb"}},
    "none": {"type": "grammar"},
    "half a character": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "\\ud800"}},
    "half a character in a string": {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "\\ud800"'}},
    "half a character in a class": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[\\ud800]"}},
}


@pytest.mark.parametrize("format", BAD.values(), ids=list(BAD))
def test_a_grammar_that_is_none_is_refused(format: dict[str, Any]) -> None:
    tool = {"type": "custom", "custom": {"name": "t", "format": format}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool]}
    answer = fetch(app_of(FakeEngine(tools=HERMES)), "POST", CHAT, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("tools"), answer.text


def test_a_tool_s_own_grammar_needs_no_gateway() -> None:
    """What the text layer is asked, by itself."""
    tool = ToolFunction("t", {"type": "object", "properties": {"input": {"type": "string"}}}, input=inside_json('start: "yes"'))
    held = answer_grammar(AnswerFormat(HERMES), [tool], "required")
    for text, taken in (("yes", True), ("no", False)):
        matcher, raw = LLMatcher(grammar._bytes(), held), call("t", text).encode()
        assert (matcher.try_consume_tokens(list(raw)) == len(raw) and matcher.is_accepting()) == taken


def test_a_custom_choice_of_no_tool_is_refused() -> None:
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [PLAIN],
        "tool_choice": {"type": "custom", "custom": {"name": "other"}},
    }
    refused(fetch(app_of(FakeEngine(tools=HERMES)), "POST", CHAT, json=body), 400, "tool_choice")
