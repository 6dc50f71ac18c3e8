"""What of a schema is held to, and what is left out of account or refused, with its place."""

from __future__ import annotations

import calendar
import datetime
import json
from random import Random
from typing import Any

import jsonschema
import pytest

from shoal.errors import InvalidRequest
from shoal.text import grammar
from tests.support.letters import accepts, said

LOOK_AHEAD = r"^(?=.{1,64}@)[^@\s]+@[^@\s]+$"


def taken(schema: dict[str, Any], value: Any, strict: bool = False) -> bool:
    return accepts(grammar.json_schema(schema, strict), json.dumps(value))


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "good", "bad", "place"),
    [
        (
            closed(a={"type": "string", "pattern": LOOK_AHEAD, "maxLength": 3}, b={"type": "integer"}),
            {"a": "x", "b": 1},
            {"a": "long", "b": 1},
            "properties.a.pattern",
        ),
        (closed(a={"type": "number", "maximum": 1e30, "minimum": 2}), {"a": 2.5}, {"a": "x"}, "properties.a.maximum"),
        (
            closed(a={"$ref": "https://example.com/x.json"}, b={"enum": ["y"]}),
            {"a": [1], "b": "y"},
            {"a": 1, "b": "z"},
            "properties.a.$ref",
        ),
        (closed(a={"$ref": "#/$defs/none"}, b={"enum": ["y"]}), {"a": [1], "b": "y"}, {"a": 1, "b": "z"}, "properties.a.$ref"),
        (
            closed(a={"type": "array", "items": {"type": "string", "pattern": "(?!a)", "enum": ["b"]}}),
            {"a": ["b"]},
            {"a": ["c"]},
            "properties.a.items.pattern",
        ),
        (
            closed(a={"anyOf": [{"type": "string", "pattern": "(?<=a)"}, {"type": "null"}]}),
            {"a": None},
            {"a": 1},
            "properties.a.anyOf.0.pattern",
        ),
        (
            {**closed(a={"$ref": "#/$defs/m"}), "$defs": {"m": {"type": "string", "pattern": "(?=a)", "maxLength": 2}}},
            {"a": "ab"},
            {"a": "abc"},
            "pattern",
        ),
    ],
)
def test_what_cannot_be_held_to_is_left_out_or_refused_and_nothing_else(schema: dict[str, Any], good: Any, bad: Any, place: str) -> None:
    assert taken(schema, good)
    assert not taken(schema, bad)
    with pytest.raises(InvalidRequest, match=place.replace("$", r"\$")) as refused:
        grammar.json_schema(schema, True, "tools")
    assert refused.value.param == "tools"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "schema",
    [
        {**closed(a={"$ref": "#/$defs/List[int]"}), "$defs": {"List[int]": {"type": "array", "items": {"type": "integer"}}}},
        {**closed(a={"$ref": "#/$defs/List%5Bint%5D"}), "$defs": {"List[int]": {"type": "array", "items": {"type": "integer"}}}},
        {**closed(a={"$ref": "#/definitions/a~1b c"}), "definitions": {"a/b c": {"type": "array", "items": {"type": "integer"}}}},
    ],
)
def test_references_by_any_name_are_followed(schema: dict[str, Any], strict: bool) -> None:
    assert taken(schema, {"a": [1, 2]}, strict)
    assert not taken(schema, {"a": ["x"]}, strict)


def test_a_schema_that_refers_to_itself_does_so_without_what_is_left_out() -> None:
    node = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "n": {"type": "string", "pattern": "(?=a)"}},
        "additionalProperties": False,
    }
    assert taken(node, {"next": {"next": {"n": "x"}}})
    assert not taken(node, {"next": {"next": 1}})


def test_what_is_no_schema_is_refused_in_any_case() -> None:
    with pytest.raises(InvalidRequest, match=r"properties\.a"):
        grammar.json_schema(closed(a={"type": "nothing"}), strict=False)


@pytest.mark.parametrize(
    ("format", "value"),
    [
        ("date", "2023-02-29"),
        ("date", "1900-02-29"),
        ("date", "0000-01-01"),
        ("date", "2023-04-31"),
        ("date", "2023-02-30"),
        ("time", "12:00:60Z"),
        ("date-time", "2023-02-29T00:00:00Z"),
        ("date-time", "2023-01-01T00:00:60Z"),
        ("hostname", "a" * 64),
        ("hostname", ".".join(["a" * 60] * 5)),
        ("email", "x" * 65 + "@b.c"),
        ("email", "x@" + "b" * 64 + ".c"),
    ],
)
def test_what_is_of_no_format_is_not_let_through(format: str, value: str) -> None:
    assert not taken({"type": "string", "format": format}, value, strict=True)
    assert not taken({"type": "string", "format": format}, value)


@pytest.mark.parametrize(
    ("format", "value"),
    [
        ("date", "2024-02-29"),
        ("date", "2000-02-29"),
        ("date", "1999-12-31"),
        ("time", "23:59:59.25+01:00"),
        ("date-time", "2024-02-29T12:30:00Z"),
        ("hostname", "a-1.example.com"),
        ("email", "first.last+tag@mail.example.com"),
    ],
)
def test_what_is_of_a_format_is_let_through(format: str, value: str) -> None:
    assert taken({"type": "string", "format": format}, value, strict=True)
    assert taken({"type": ["string", "null"], "format": format}, value, strict=True)
    assert taken({"type": ["string", "null"], "format": format}, None, strict=True)


@pytest.mark.slow
def test_dates_are_those_of_the_calendar() -> None:
    made = grammar.json_schema({"type": "string", "format": "date"})
    for year in (1, 4, 100, 400, 1900, 2000, 2023, 2024, 2100, 9999):
        for month in range(1, 13):
            for day in (28, 29, 30, 31):
                real = day <= calendar.monthrange(year, month)[1]
                assert accepts(made, f'"{year:04}-{month:02}-{day:02}"') == real


@pytest.mark.slow
@pytest.mark.parametrize("format", ["date", "date-time", "ipv4", "ipv6", "uuid", "hostname", "email", "duration", "uri"])
def test_whatever_is_let_through_is_of_the_format(format: str) -> None:
    made = grammar.json_schema({"type": "string", "format": format})
    checker = jsonschema.FormatChecker()
    for seed in range(20):
        value = json.loads(said(made, Random(seed)))
        checker.check(value, format)
        if format in ("date", "date-time"):
            datetime.date.fromisoformat(value[:10])
