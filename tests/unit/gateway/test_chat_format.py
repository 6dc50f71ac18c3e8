"""response_format: JSON by grammar, with the schema checked before anything runs."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import pytest

from shoal.gateway.engine import Engine
from shoal.text import grammar, schema
from tests.support.engine import FakeEngine, says
from tests.support.http import ask, refused

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def formatted(engine: Engine, **json_schema: Any) -> httpx.Response:
    return ask(engine, response_format={"type": "json_schema", "json_schema": {"name": "point", **json_schema}})


def held_to(answer: httpx.Response, engine: FakeEngine) -> str:
    assert answer.status_code == 200, answer.text
    return engine.asked.sampling.grammar


def test_text_is_held_to_nothing() -> None:
    engine = FakeEngine()
    assert held_to(ask(engine, response_format={"type": "text"}), engine) == ""


def test_an_object_may_be_any() -> None:
    engine = FakeEngine()
    assert held_to(ask(engine, response_format={"type": "json_object"}), engine) == grammar.json_object()


def test_an_answer_that_is_held_to_a_grammar_does_not_go_on_after_its_end() -> None:
    refused(ask(FakeEngine(), response_format={"type": "json_object"}, ignore_eos=True), 400, "ignore_eos")
    engine = FakeEngine()
    assert held_to(ask(engine, response_format={"type": "text"}, ignore_eos=True), engine) == ""


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_schema_is_what_the_answer_is_held_to(strict: bool | None) -> None:
    engine = FakeEngine()
    answer = formatted(engine, schema=POINT, strict=strict, description="A point.")
    assert held_to(answer, engine) == grammar.json_schema(POINT, bool(strict))


def test_a_format_without_a_schema_is_an_object() -> None:
    engine = FakeEngine()
    assert held_to(formatted(engine), engine) == grammar.json_object()


def test_a_schema_may_allow_anything() -> None:
    engine = FakeEngine()
    assert held_to(formatted(engine, schema={}), engine) == grammar.json_schema({}, False)


def test_json_that_is_cut_says_length() -> None:
    engine = FakeEngine(says('{"x": 1, "y": 2}'))
    choice = ask(engine, response_format={"type": "json_object"}, max_tokens=5).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"x":', "length")


def test_json_is_content_and_ends_with_stop() -> None:
    choice = formatted(FakeEngine(says('{"x": 1, "y": 2}')), schema=POINT, strict=True).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"x": 1, "y": 2}', "stop")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


WRONG_SCHEMAS: list[dict[str, Any]] = [
    {"type": "nothing"},
    {"type": "object", "properties": 5},
    {"$ref": "https://example.com/schema"},
    {"$ref": "#/$defs/missing"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "a" * (grammar.MAX_PATTERN + 1)},
    nested(schema.MAX_DEPTH),
    {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(schema.MAX_PROPERTIES + 1)}},
    {"enum": ["x" * schema.MAX_SCHEMA]},
]


@pytest.mark.parametrize("schema", WRONG_SCHEMAS, ids=lambda schema: str(schema)[:40])
def test_schemas_that_are_none_or_too_large_are_refused(schema: dict[str, Any]) -> None:
    engine = FakeEngine()
    refused(formatted(engine, schema=schema, strict=True), 400, "response_format")
    assert not engine.streams


def test_only_a_strict_schema_has_to_be_held_in_full() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    assert "uniqueItems" in refused(formatted(FakeEngine(), schema=schema, strict=True), 400, "response_format")
    assert formatted(FakeEngine(), schema=schema, strict=False).status_code == 200


@pytest.mark.parametrize("name", ["", "a b", "n" * 65])
def test_a_schema_has_a_proper_name(name: str) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": name, "schema": POINT}}
    refused(ask(FakeEngine(), response_format=response_format), 400, "response_format.json_schema.name")


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({}, "response_format.type"),
        ("json", "response_format"),
        ({"type": "json_schema"}, "response_format"),
        ({"type": "json_object", "json_schema": {"name": "x"}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": POINT}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": "y"}}, "response_format.json_schema.schema"),
    ],
)
def test_formats_that_are_none_are_refused_by_name(response_format: Any, param: str) -> None:
    refused(ask(FakeEngine(), response_format=response_format), 400, param)
