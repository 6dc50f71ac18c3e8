"""Grammars: what they describe, what is refused with a reason, and that hostile ones are refused soon."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import InvalidRequest
from shoal.request import MAX_GRAMMAR, SamplingParams
from shoal.text import grammar
from shoal.text.tools import GLM, HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, QWEN3_CODER, ToolFormat, ToolFunction, detect
from tests.support.letters import accepts, calls, said

Schema = dict[str, Any]


def closed(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


WEATHER = ToolFunction(
    "weather", closed(city={"$ref": "#/$defs/City"}) | {"$defs": {"City": {"type": "string", "maxLength": 9}}}, strict=True
)
CLOCK = ToolFunction("clock")
TOOLS = (WEATHER, CLOCK)


# What schemas describe

_names = st.sampled_from(["a", "b", "name", "größe", 'quo"te'])
_leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(0, 6).map(lambda n: {"type": "string", "maxLength": n}),
    st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(lambda r: {"type": "integer", "minimum": r[0], "maximum": r[0] + r[1]}),
    st.lists(st.one_of(st.integers(-9, 9), st.text(max_size=4), st.booleans(), st.none()), min_size=1, max_size=4).map(
        lambda e: {"enum": e}
    ),
    st.just({"type": "string", "pattern": "^[a-z]{2,4}-[0-9]+$", "maxLength": 12}),
    st.just({"type": "string", "format": "date"}),
)


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.dictionaries(_names, inner, max_size=3).flatmap(
        lambda p: (
            st.lists(st.sampled_from(sorted(p)), unique=True).map(lambda r: {**closed(**p), "required": r}) if p else st.just(closed())
        )
    )


_schemas = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        _objects(inner),
        inner.map(lambda item: {"type": "array", "items": item, "maxItems": 3}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(_schemas, st.integers(0, 2**32))
def test_what_a_schema_lets_through_is_valid(schema: Schema, seed: int):
    jsonschema.validate(json.loads(said(grammar.json_schema(schema), Random(seed))), schema)


def test_an_object_is_any_object():
    made = grammar.json_object()
    assert accepts(made, '{"a": [1, {"b": null}]}')
    assert not accepts(made, "[1]")
    assert not accepts(made, '{"a": 1} and')


def test_spaces_do_not_go_on_for_ever():
    made = grammar.json_object()
    assert accepts(made, '{\n  "a": [1,\r\n\t2]\n}')
    assert not accepts(made, '{\n\n\n"a": 1}')
    assert not accepts(made, '{"a":' + " " * 50 + "1}")


def test_a_regular_expression_matches_all_of_the_answer():
    made = grammar.regex(r"(yes|no), [0-9]{2} %")
    assert accepts(made, "yes, 50 %")
    assert not accepts(made, "yes, 50 %!")


def test_a_grammar_in_lark():
    made = grammar.lark('start: "a" rest\nrest: "b"+')
    assert accepts(made, "abb")
    assert not accepts(made, "a")


def test_recursive_schemas():
    tree: Schema = closed(value={"type": "integer"}, left={"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]})
    made = grammar.json_schema({"$ref": "#/$defs/tree", "$defs": {"tree": tree}})
    assert accepts(made, '{"value": 1, "left": {"value": 2, "left": null}}')


# What is refused


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strin"}, "strin"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.org/schema"}, "example.org"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "number", "minimum": float("nan")}, "not JSON"),
        ({"type": "string", "x-guidance": {"lenient": True}}, "x-guidance"),
        ({"default": object()}, "not JSON"),
        ({"default": "\ud800"}, "not JSON"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(schema: Schema, why: str):
    with pytest.raises(InvalidRequest, match=why) as refused:
        grammar.json_schema(schema, param="response_format.json_schema.schema")
    assert refused.value.param == "response_format.json_schema.schema"
    assert len(str(refused.value)) < 600


def test_what_is_not_supported_is_passed_over_where_that_is_asked_for():
    schema: Schema = closed(a={"type": "string", "format": "colour"}, b={"type": "array", "uniqueItems": True, "maxItems": 2})
    assert accepts(grammar.json_schema(schema, strict=False), '{"a": "x", "b": [1]}')


def nested(depth: int) -> Schema:
    out: Schema = {"type": "string"}
    for _ in range(depth):
        out = closed(a=out)
    return out


HOSTILE: dict[str, Schema] = {
    "deep": nested(5000),
    "large": {"enum": ["x" * 100 + str(i) for i in range(1000)]},
    "many properties": closed(**{f"p{i}": {"type": "string"} for i in range(2000)}),
    "many that may be left out": {**closed(**{f"p{i}": {"type": "string"} for i in range(900)}), "required": []},
    "a long pattern": {"type": "string", "pattern": "a" * 9000},
    "repeated repetition": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "as the pattern of names": {"type": "object", "patternProperties": {"(a{1000}){1000}": {}}},
    "patterns that all hold": {"allOf": [{"type": "string", "pattern": f"^.*{c}.*$"} for c in "abcdefghijklmnopqrst"]},
    "a great divisor": {"type": "integer", "multipleOf": 999999937},
    "alternatives of alternatives": {"allOf": [{"anyOf": [closed(**{f"x{i}{j}": {}}) for j in range(6)]} for i in range(6)]},
    "references that double": {
        "$defs": {f"d{i}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2}] * 2} for i in range(14)} | {"d14": {}},
        "$ref": "#/$defs/d0",
    },
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_hostile_schemas_are_refused(schema: Schema):
    with pytest.raises(InvalidRequest):
        grammar.json_schema(schema)
    with pytest.raises(InvalidRequest):
        calls(HERMES, [ToolFunction("f", closed(a=schema), strict=True)])


@pytest.mark.parametrize("pattern", ["(a", "a{9999999}", "x" * 5000, "(?!a)"])
def test_patterns_that_cannot_be(pattern: str):
    with pytest.raises(InvalidRequest):
        grammar.regex(pattern)


def test_a_grammar_has_a_largest_size():
    with pytest.raises(InvalidRequest, match="characters"):
        grammar.lark(f'start: "{"a" * MAX_GRAMMAR}"')
    with pytest.raises(InvalidRequest, match="characters"):
        SamplingParams(grammar="a" * (MAX_GRAMMAR + 1)).check(9)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        ("a{10}", 10),
        ("(ab{2}){3}", 9),
        (r"[a{9}\]]{3}", 3),
        (r"\{9}", 3),
        (r"\p{Lu}{4}", 4),
        ("a{2,}b{1,3}", 5),
        ("(a|b)*", 2),
        ("((", 0),
    ],
)
def test_a_patterns_size_is_counted_with_its_repetitions(pattern: str, size: int):
    assert grammar.repeated(pattern) == size


@given(st.text(alphabet="ab(){}[]\\,19*|^]", max_size=30))
def test_counting_comes_to_an_end_whatever_the_pattern(pattern: str):
    assert grammar.repeated(pattern) >= 0


# Tool calls

H_WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
H_CLOCK = '<tool_call>\n{"name": "clock", "arguments": {"zone": 1}}\n</tool_call>'
M_WEATHER, M_BOTH = (
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}}]',
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "clock", "arguments": {}}]',
)
L_WEATHER = '{"name": "weather", "parameters": {"city": "Ulm"}}'


@pytest.mark.parametrize(
    ("format", "call"), [(HERMES, H_WEATHER), (MISTRAL, M_WEATHER), (LLAMA3, L_WEATHER)], ids=["hermes", "mistral", "llama3"]
)
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_as_each_format_writes_them(format: ToolFormat, call: str, parallel: bool):
    auto, required, named = (calls(format, TOOLS, choice, parallel) for choice in ("auto", "required", "weather"))
    assert [accepts(made, call) for made in (auto, required, named)] == [True, True, True]
    assert [accepts(made, "Hello.") for made in (auto, required, named)] == [True, False, False]
    assert [accepts(made, call.replace("Ulm", "a name that is too long")) for made in (auto, required, named)] == [False, False, False]
    assert [accepts(made, call.replace("weather", "wetter")) for made in (auto, required, named)] == [False, False, False]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_several_calls_where_they_are_allowed(choice: str):
    for format, both in ((HERMES, f"{H_WEATHER}\n{H_CLOCK}"), (MISTRAL, M_BOTH)):
        assert accepts(calls(format, TOOLS, choice), both)
        assert not accepts(calls(format, TOOLS, choice, parallel=False), both)


def test_a_named_function_is_called_once():
    made = calls(HERMES, TOOLS, "clock")
    assert accepts(made, H_CLOCK)
    assert not accepts(made, H_WEATHER)
    assert not accepts(made, f"{H_CLOCK}\n{H_CLOCK}")


def test_text_may_come_before_calls_and_not_after():
    made = calls(HERMES, TOOLS)
    assert accepts(made, f"Let me see. {H_WEATHER}")
    assert not accepts(made, f"{H_WEATHER} There.")
    assert not accepts(made, "<tool_call>weather")
    assert accepts(made, "")


def test_bare_json_is_a_call_from_its_first_brace_on():
    made = calls(LLAMA3, TOOLS)
    assert not accepts(made, '{"city": "Ulm"}')
    assert not accepts(made, f" {L_WEATHER}")
    assert accepts(made, 'It is {"warm"}')


def test_a_trigger_that_is_a_special_token_is_named_by_its_id():
    made = calls(MISTRAL, TOOLS, marks={"[TOOL_CALLS]": 31999, "<s>": 1})
    assert "<[31999]>" in made
    assert "[TOOL_CALLS]" not in made


def test_a_tool_whose_schema_is_not_supported_is_refused_where_it_is_strict():
    odd = closed(a={"type": "string", "format": "colour"})
    assert accepts(calls(LLAMA3, [ToolFunction("f", odd)]), '{"name": "f", "parameters": {"a": "x"}}')
    with pytest.raises(InvalidRequest, match="colour") as refused:
        calls(LLAMA3, [ToolFunction("f", odd, strict=True)])
    assert refused.value.param == "tools"


@pytest.mark.parametrize("count", [0, 129])
def test_there_is_a_number_of_tools(count: int):
    with pytest.raises(InvalidRequest, match="1 to 128"):
        calls(HERMES, [CLOCK] * count)


def test_a_choice_of_no_tool_is_refused():
    with pytest.raises(InvalidRequest, match="weather, clock") as refused:
        calls(HERMES, TOOLS, "nothing")
    assert refused.value.param == "tool_choice"


@settings(max_examples=20)
@given(st.sampled_from([HERMES, MISTRAL, LLAMA3]), _objects(_leaves), st.text(min_size=1, max_size=8), st.integers(0, 2**32))
def test_arguments_are_valid_whatever_the_schema_and_the_name(format: ToolFormat, schema: Schema, name: str, seed: int):
    if name in ("auto", "required"):
        name += "!"
    text = said(calls(format, [ToolFunction(name, schema, strict=True)], name), Random(seed))
    text = text.removeprefix(format.opening + format.begin).removesuffix(format.closing).removesuffix(format.end)
    text = text.removeprefix(json.dumps(name, ensure_ascii=False)[1:-1] + format.middle)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ('{% if tools %}<tool_call>\\n{"name": <function-name>, "arguments": <args>}\\n</tool_call>{% endif %}', HERMES),
        ("{% if tools %}<tool_call>\n<function=name>arguments</function>{% endif %}", None),
        ("{% if tools %}<tool_call>\n<function=name>\n<parameter=a>{% endif %}", QWEN3_CODER),
        ("{% if tools %}<tool_call>{name}\n<arg_key>{% endif %}", GLM),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [", MISTRAL),
        ("{% if tools %}{% endif %}[TOOL_CALLS]name[ARGS]{}", MISTRAL_ARGS),
        ('<|start_header_id|>{% if tools %}{"name": function, "parameters": dictionary}\\"parameters\\": {% endif %}', LLAMA3),
        ("{% if tools %}something else{% endif %}", None),
        ("<tool_call> but no list of them", None),
        ("{{ messages }}", None),
    ],
)
def test_a_template_says_which_format_it_teaches(template: str, format: ToolFormat | None):
    assert detect(template) == format


def test_mistrals_newer_list_begins_without_a_space():
    found = detect("{% if tools %}{% endif %}[TOOL_CALLS][{")
    assert found is not None
    assert found.opening == "[TOOL_CALLS]["
