"""Whatever schemas tools have: they are held to or refused, and calls are read as the grammar lets them be written."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest
from shoal.gateway.answers import conversation
from shoal.text import grammar, loose
from shoal.text import schema as schemas
from shoal.text.answer_format import AnswerFormat
from shoal.text.answer_grammar import answer_grammar, held_tools, kinds
from shoal.text.deltas import Arguments
from shoal.text.lark import inside_json
from shoal.text.reasoning import THINK
from shoal.text.tool_parser import ToolParser
from shoal.text.tools import GLM, HERMES, QWEN3_CODER, ToolFormat, ToolFunction
from tests.support.app import app_of
from tests.support.engine import FakeEngine, says
from tests.support.http import CHAT, fetch
from tests.support.letters import accepts

TAGGED = pytest.mark.parametrize("format", [GLM, QWEN3_CODER], ids=lambda format: format.name)
HI = [{"role": "user", "content": "Hi"}]
PARTS: list[Any] = [
    {"anyOf": 5},
    {"anyOf": [5]},
    {"anyOf": []},
    {"oneOf": "x"},
    {"type": {"a": 1}},
    {"type": [["string"]]},
    {"anyOf": [{"type": ["string", ["null"]]}]},
    {"enum": 5},
    {"$ref": 5},
    {"$ref": "#/$defs/none"},
    {"$ref": "#/anyOf/" + "1" * 5000},
    False,
    5,
    None,
]
WHOLES: list[Any] = [{"properties": [1]}, {"properties": None}, {"required": 5}, {"required": "a"}, {"$defs": [1]}, {"$ref": "#"}]
CHAIN = {**{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)}, "d1500": {"type": "string"}}


def ask(engine: FakeEngine, parameters: Any, **function: Any) -> Any:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, **function}}
    return fetch(app_of(engine), "POST", CHAT, json={"messages": HI, "tools": [tool], "tool_choice": "required"})


@TAGGED
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("parameters", [*({"properties": {"a": part}} for part in PARTS), *WHOLES], ids=lambda p: str(p)[:60])
def test_no_schema_is_an_error_of_the_server(format: ToolFormat, strict: bool, parameters: Any) -> None:
    answer = ask(FakeEngine(tools=format), parameters, strict=strict)
    assert answer.status_code in (200, 400), answer.text


def test_a_long_chain_of_references_is_followed() -> None:
    (tool,) = held_tools([ToolFunction("f", {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": CHAIN})])
    assert kinds([tool]) == {"f": {"a": "text"}}


VALUES = ["x", "null", "5", '"x"', "true", "[5]", '["x"]', '{"k": "x"}', "{}"]


def written(format: ToolFormat, arguments: dict[str, str]) -> str:
    tags = format.tags
    assert tags is not None
    given = "".join(f"{tags.begin}{name}{tags.middle}{value}{tags.end}" for name, value in arguments.items())
    return f"{format.begin}f{format.middle}{given}{format.end}"


def read(format: ToolFormat, parameters: dict[str, Any], arguments: dict[str, str]) -> Any:
    """What a call is read as that the grammar lets through; None: it does not."""
    tools = held_tools([ToolFunction("f", parameters)])
    text = written(format, arguments)
    if not accepts(answer_grammar(AnswerFormat(format), tools, "required"), text):
        return None
    parser = ToolParser(format, kinds(tools))
    deltas = [*parser.push(text), *parser.finish()]
    return json.loads("".join(delta.text for delta in deltas if isinstance(delta, Arguments)))


@TAGGED
@pytest.mark.parametrize(
    ("part", "takes"),
    [
        ({"$ref": "#/$defs/none"}, VALUES[1:]),
        ({"$ref": "https://example.org/x", "type": "string"}, VALUES),
        ({"anyOf": [{"type": "string", "pattern": "(?=a)"}, {"type": "null"}]}, VALUES),
        ({"oneOf": [{"type": "string"}], "anyOf": 5}, VALUES),
        ({"anyOf": 5, "type": "string"}, VALUES),
        ({"anyOf": 5, "type": "boolean"}, ["true"]),
        ({"enum": 5, "type": "string"}, VALUES),
    ],
    ids=str,
)
def test_arguments_are_read_by_what_is_held_of_their_schema(format: ToolFormat, part: dict[str, Any], takes: list[str]) -> None:
    parameters = {"properties": {"a": part}, "required": ["a"]}
    assert [value for value in VALUES if read(format, parameters, {"a": value}) is not None] == takes


@TAGGED
def test_parameters_that_are_a_reference_have_its_properties(format: ToolFormat) -> None:
    node = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"$ref": "#/$defs/n"}}, "required": ["a"]}
    parameters = {"$ref": "#/$defs/n", "$defs": {"n": node}}
    assert read(format, parameters, {"a": "x", "b": '{"a": "y"}'}) == {"a": "x", "b": {"a": "y"}}
    assert read(format, parameters, {"b": '{"a": "y"}'}) is None


_parts = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer", "minimum": 0, "maximum": 9},
            {"type": ["string", "null"]},
            {"enum": ["x", "y"]},
            {"enum": [None, "x"]},
            {"const": 5},
            {"$ref": "#/$defs/s"},
            {"$ref": "#/$defs/o"},
            {"type": "boolean"},
            False,
        ]
    ),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        .filter(lambda ways: any(way is not False for way in ways))  # what nothing satisfies cannot be held to
        .map(lambda ways: {"anyOf": ways})
        | inner.map(lambda i: {"type": "array", "items": i})
    ),
    max_leaves=4,
)
DEFINITIONS = {"s": {"type": "string"}, "o": {"type": "object", "properties": {"k": {"$ref": "#/$defs/s"}}, "additionalProperties": False}}


@TAGGED
@pytest.mark.parametrize("ways", ["anyOf", "oneOf"])
def test_ways_that_each_list_their_values_take_no_other(format: ToolFormat, ways: str) -> None:
    part = {ways: [{"enum": ["x", "y"]}, {"const": "w"}]}
    parameters = {"type": "object", "properties": {"a": part}, "required": ["a"]}
    assert [read(format, parameters, {"a": value}) for value in ("x", "w", "z", "null")] == [{"a": "x"}, {"a": "w"}, None, None]


@settings(max_examples=100)
@given(
    st.sampled_from([GLM, QWEN3_CODER]),
    _parts,
    _parts,
    st.dictionaries(st.sampled_from(["a", "größe"]), st.sampled_from(VALUES)),
)
def test_what_is_let_through_is_read_as_json_of_the_schema(format: ToolFormat, a: Any, b: Any, given: dict[str, str]) -> None:
    schema = {"type": "object", "properties": {"a": a, "größe": b}, "required": ["größe"], "$defs": DEFINITIONS}
    with contextlib.suppress(InvalidRequest):
        if (arguments := read(format, schema, {name: given[name] for name in sorted(given)})) is not None:
            jsonschema.validate(arguments, schema)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["string", "null", "a", "#", "#/$defs/a", "#/properties/a", "date", "(?=a)"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "a",
                    "required",
                    "anyOf",
                    "oneOf",
                    "allOf",
                    "enum",
                    "const",
                    "items",
                    "$ref",
                    "$defs",
                    "not",
                    "pattern",
                    "format",
                    "maxLength",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(
    st.sampled_from([GLM, QWEN3_CODER, HERMES]),
    st.dictionaries(st.sampled_from(["properties", "required", "$defs", "$ref", "anyOf"]), _json),
    st.booleans(),
)
def test_whatever_is_called_a_schema_is_held_to_or_refused(format: ToolFormat, parameters: dict[str, Any], strict: bool) -> None:
    with contextlib.suppress(InvalidRequest):
        tools = held_tools([ToolFunction("f", parameters, strict)])
        kinds(tools)
        answer_grammar(AnswerFormat(format, names=("f",)), tools)
    with contextlib.suppress(InvalidRequest):
        grammar.json_schema(parameters, strict)


def test_a_grammar_holds_a_call_without_its_marker_too() -> None:
    tool = ToolFunction("t", {"type": "object", "properties": {"input": {"type": "string"}}}, input=inside_json('start: "yes"'))
    made = answer_grammar(AnswerFormat(HERMES, names=("t",)), [tool])
    for text, taken in (("yes", True), ("no", False)):
        assert accepts(made, f'{{"name": "t", "arguments": {{"input": "{text}"}}}}') == taken
        assert loose.begins(f'{{"name": "t", "arguments": {{"input": "{text}"}}}}', ["t"]) is not None


@pytest.mark.parametrize("tools", [None, HERMES])
def test_a_schema_is_held_once_for_all_answers_that_are_asked_for_it(tools: ToolFormat | None, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation._held.cache_clear()
    seen: list[Any] = []
    monkeypatch.setattr(schemas, "check_bounds", lambda schema, param: seen.append(schema))
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    body: dict[str, Any] = {
        "messages": HI,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": False}},
    }
    if tools is not None:
        body["tools"] = [{"type": "function", "function": {"name": "f"}}]
    for _ in range(3):
        engine = FakeEngine(says("{}"), tools=tools, reasoning=THINK)
        assert fetch(app_of(engine), "POST", CHAT, json=body).status_code == 200
    assert seen.count(schema) == 1
