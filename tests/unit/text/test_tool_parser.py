"""Tool calls in a model's text are found however the text is cut, and what is none is content."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.text import loose, tools
from shoal.text.deltas import Arguments, CallBegun, ContentDelta, Delta
from shoal.text.tool_parser import ToolParser
from shoal.text.tools import GLM4, HARMONY, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, ToolFormat

FORMATS = [format for format in tools.FORMATS if format.tags is None and format not in (HARMONY, GLM4)]
FORMATS += [replace(MISTRAL, opening="[TOOL_CALLS]["), replace(MISTRAL_ARGS, middle=f"[CALL_ID]{tools.ID}[ARGS]")]
SEVERAL = [format for format in FORMATS if format.separator is not None]
Call = tuple[str, dict[str, Any]]
CALL: Call = ("f", {"x": 1})

names = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]<tool_call>é\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(names, st.dictionaries(st.text(max_size=5), values, max_size=3))


def written(format: ToolFormat, made: Sequence[Call]) -> str:
    return format.written([(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in made])


def parsed(format: ToolFormat, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]], bool]:
    """Content, calls with their arguments as they came, and whether they are complete."""
    parser = ToolParser(format)
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    said, made = "", list[tuple[str, str]]()
    for delta in deltas:
        match delta:
            case ContentDelta(text):
                assert text
                said += text
            case CallBegun(number, name):
                assert number == len(made)
                made.append((name, ""))
            case Arguments(number, text):
                assert number == len(made) - 1
                made[-1] = (made[-1][0], made[-1][1] + text)
    assert parser.calls == len(made)
    return said, made, parser.complete


def cut(text: str, at: Sequence[int]) -> list[str]:
    ends = sorted({min(a, len(text)) for a in at} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


cuts = st.lists(st.integers(0, 200), max_size=12)


@given(st.sampled_from(SEVERAL), st.text("so be it.\n ", max_size=20), st.lists(calls, min_size=1, max_size=3), cuts)
@settings(max_examples=150)
def test_content_and_calls_come_out_as_they_were_written(format: ToolFormat, said: str, made: list[Call], at: list[int]) -> None:
    content, found, complete = parsed(format, cut(said + written(format, made), at))
    assert (content, complete) == (said.rstrip(), True)
    assert [(name, json.loads(arguments)) for name, arguments in found] == made


@given(calls, cuts)
def test_a_call_of_bare_json_comes_out_as_it_was_written(call: Call, at: list[int]) -> None:
    content, found, complete = parsed(LLAMA3, cut(" \n" + written(LLAMA3, [call]), at))
    assert (content, complete) == ("", True)
    assert [(name, json.loads(arguments)) for name, arguments in found] == [call]


FRAGMENTS = [
    *("<tool_call>", "\n", "</tool_call>", "[TOOL_CALLS]", " [", "[", "]", '{"name": "', "f", '", "arguments": {', '", "parameters": {'),
    *('"x": "', '"', "\\", "}", "{", ", ", "<tool", " ", "word", "é"),
    *("[CALL_ID]", "[ARGS]", "[\n    ", '{"tool_call_id": "', "0", '", "tool_name": "', "<|START_ACTION|>", "<|tool_call|>"),
]
anything = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)


@given(st.sampled_from(FORMATS), anything, cuts)
@settings(max_examples=200)
def test_however_any_text_is_cut_the_same_comes_out(format: ToolFormat, text: str, at: list[int]) -> None:
    assert parsed(format, cut(text, at)) == parsed(format, [text]) == parsed(format, list(text))


@given(st.sampled_from(SEVERAL), st.text("words <[tol_ca] \n", max_size=60), cuts)
def test_text_without_calls_is_content_to_the_last_character(format: ToolFormat, text: str, at: list[int]) -> None:
    text = text.replace(format.trigger, "")
    assert parsed(format, cut(text, at)) == (text, [], False)


@given(st.text("words}] {\n", max_size=40).filter(lambda text: not text.lstrip().startswith("{")), cuts)
def test_text_that_does_not_begin_like_json_is_content(text: str, at: list[int]) -> None:
    assert parsed(LLAMA3, cut(text, at)) == (text, [], False)


def test_content_and_arguments_are_out_as_soon_as_they_are_certain() -> None:
    parser = ToolParser(HERMES)
    assert parser.push("I look. <tool") == [ContentDelta("I look.")]
    assert parser.push('_call>\n{"name": "f", "argum') == []
    assert parser.push('ents": {"a') == [CallBegun(0, "f"), Arguments(0, '{"a')]
    assert parser.push('": 1') == [Arguments(0, '": 1')]
    assert not parser.complete
    assert parser.push("}}") == [Arguments(0, "}")]
    assert parser.complete


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call> I know this word",
        '<tool_call>\n{"nome": "f", "arguments": {}}',
        '<tool_call>\n{"name": "", "arguments": {}}',
        '<tool_call>\n{"name": "a b", "arguments": {}}',
        '<tool_call>\n{"name": "f", "arguments": 5}',
        '<tool_call>\n{"name": "%s", "arguments": {}}' % ("f" * 65),
    ],
)
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    assert parsed(HERMES, list("so: " + text)) == ("so: " + text, [], False)


def test_a_call_after_what_only_looked_like_one_is_found() -> None:
    text = "<tool_call> is a word, and " + written(HERMES, [CALL])
    assert parsed(HERMES, list(text)) == ("<tool_call> is a word, and", [("f", '{"x": 1}')], True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_that_is_cut_in_its_arguments_is_not_complete(format: ToolFormat) -> None:
    text = written(format, [CALL])
    assert parsed(format, [text[: text.index("x") + 1]]) == ("", [("f", '{"x')], False)


@pytest.mark.parametrize("format", SEVERAL)
def test_a_call_that_is_cut_before_its_arguments_is_none(format: ToolFormat) -> None:
    begin = format.begin.replace(tools.ID, "0")
    text = written(format, [CALL]).partition(begin)[0] + begin
    assert parsed(format, ["well ", text]) == ("well", [], False)


def test_bare_json_that_is_cut_before_it_is_a_call_is_content() -> None:
    assert parsed(LLAMA3, ['{"na']) == ('{"na', [], False)


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_after_the_last_call_is_content(format: ToolFormat) -> None:
    assert parsed(format, [written(format, [CALL]), " and so on"]) == ("", [("f", '{"x": 1}')], True)


@pytest.mark.parametrize("text", [" " * 500_000 + "x", "```" + " " * 500_000 + "x", "{" + " " * 500_000 + "x"])
def test_white_space_without_end_is_looked_at_once(text: str) -> None:
    assert loose.begins(text, ["f"]) is None
    assert not loose.may_begin(text)
