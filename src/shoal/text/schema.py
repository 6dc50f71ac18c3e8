"""JSON schemas in an enforceable form: within limits, with references that resolve, and (if not strict) without what cannot be
enforced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote

from shoal.errors import InvalidRequest

MAX_SCHEMA = 64 << 10  # bytes
MAX_DEPTH = 64  # of nested objects and lists; a level of properties takes two
MAX_PROPERTIES = 1000
MAX_OPTIONAL = 400  # of one object
_MOST_TRIED = 400  # parts of a schema that are compiled by themselves to find what cannot be enforced

Schema = dict[str, Any]


class TooCostly(InvalidRequest):
    """The schema could be enforced, but takes too much work: nothing of it is ignored instead."""


Compile = Callable[[Mapping[str, Any]], None]
"""Raises InvalidRequest for a schema that cannot be enforced."""

_ONE = (
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
)
_LIST = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_DEFINITIONS = ("$defs", "definitions")


def check_bounds(schema: Mapping[str, Any], param: str) -> None:
    """Raises InvalidRequest for a schema that is not JSON or is too large."""
    properties = 0
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inside = cast("Mapping[str, Any]", value)
                if "x-guidance" in inside:
                    raise InvalidRequest("the schema has 'x-guidance', which is not supported; leave it out", param)
                if (optional := _optional(inside)) > MAX_OPTIONAL:
                    raise InvalidRequest(f"an object has {optional} optional properties; at most {MAX_OPTIONAL} are supported", param)
                if isinstance(part := inside.get("properties"), Mapping):
                    properties += len(cast("Mapping[str, Any]", part))
                below += inside.values()
            elif isinstance(value, list):
                below += cast("list[Any]", value)
        level = [value for value in below if isinstance(value, (Mapping, list))]
        if not level:
            break
    else:
        raise InvalidRequest(f"the schema is nested more than {MAX_DEPTH} levels deep", param)
    if properties > MAX_PROPERTIES:
        raise InvalidRequest(f"the schema has {properties} properties; at most {MAX_PROPERTIES} are supported", param)
    try:
        size = len(json.dumps(schema, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the schema is not JSON: {error}", param) from error
    if size > MAX_SCHEMA:
        raise InvalidRequest(f"the schema has {size} bytes; at most {MAX_SCHEMA} are supported", param)


def _optional(schema: Mapping[str, Any]) -> int:
    """How many properties are optional: any of them may follow any other, which is what costs time."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        return 0
    return len(cast("Mapping[str, Any]", properties)) - (len(cast("list[Any]", required)) if isinstance(required, list) else 0)


def held(schema: Mapping[str, Any], strict: bool, compile: Compile, param: str) -> Mapping[str, Any]:
    """The parts of a schema within the limits that can be enforced: all of it, or (not strict) everything except the keywords
    that cannot.

    Raises InvalidRequest (strict) with the location of what cannot be enforced.
    """
    try:
        compile(schema)
    except TooCostly:
        raise
    except InvalidRequest:
        return _Search(schema, strict, compile, param).held()
    return schema


def localised(schema: Mapping[str, Any]) -> Schema:
    """The schema with each internal reference changed to a definition with a plain name; references that lead nowhere are left
    as they are."""
    names: dict[str, str] = {}
    found: list[Any] = []
    """The targets of references, in the order of their names."""

    def rewritten(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        mine: Schema = {key: value for key, value in cast("Mapping[str, Any]", node).items() if key not in _DEFINITIONS}
        for key, at, part in list(parts(mine)):
            _put(mine, key, at, rewritten(part))
        if isinstance(reference := mine.get("$ref"), str) and (end := _resolved(schema, reference)) is not None:
            name, target = end
            if name not in names:
                names[name] = f"d{len(names)}"
                found.append(target)
            mine["$ref"] = f"#/$defs/{names[name]}"
        return mine

    out = cast("Schema", rewritten(schema))
    definitions = {f"d{at}": rewritten(target) for at, target in enumerate(found)}
    return {**out, "$defs": definitions} if definitions else out


def _resolved(schema: Mapping[str, Any], reference: str) -> tuple[str, Any] | None:
    """Where in a schema a reference leads, and what is there; None: nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    at: Any = schema
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping) and step in at:
            at = cast("Mapping[str, Any]", at)[step]
        elif isinstance(at, list) and step.isdecimal() and len(step) < 10 and int(step) < len(cast("list[Any]", at)):
            at = cast("list[Any]", at)[int(step)]
        else:
            return None
    return (unquote(reference), cast("Any", at)) if isinstance(at, (Mapping, bool)) else None


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, str | int | None, Any]]:
    """The schemas directly inside a schema: the keyword, the name or number there (None: the keyword has one schema), and the schema."""
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            yield from ((key, name, part) for name, part in cast("Mapping[str, Any]", value).items())
        elif key in _LIST and isinstance(value, list):
            yield from ((key, at, part) for at, part in enumerate(cast("list[Any]", value)))
        elif key in _ONE and isinstance(value, Mapping):
            yield key, None, value


def _put(schema: Schema, key: str, at: str | int | None, part: Any) -> None:
    """Replaces a schema that `parts` named; the original is not changed."""
    if at is None:
        schema[key] = part
    elif isinstance(at, int):
        schema[key] = [part if i == at else old for i, old in enumerate(schema[key])]
    else:
        schema[key] = {**schema[key], at: part}


class _Search:
    """Finds what in a schema cannot be enforced: compiles each part by itself, the innermost first."""

    def __init__(self, schema: Mapping[str, Any], strict: bool, compile: Compile, param: str) -> None:
        self._schema, self._strict, self._compile, self._param = localised(schema), strict, compile, param
        definitions = cast("Schema", self._schema.pop("$defs", {}))
        self._names = dict[str, Any].fromkeys(definitions, True)
        self._definitions = definitions
        self._tried = 0

    def held(self) -> Schema:
        kept = {name: self._kept(part, f"$defs.{name}") for name, part in self._definitions.items()}
        root = self._kept(self._schema, "")
        whole = {**root, "$defs": kept} if kept else root
        try:
            self._compile(whole)
        except InvalidRequest as error:
            raise InvalidRequest(str(error), self._param) from error
        return whole

    def _fault(self, part: Any) -> InvalidRequest | None:
        """Why a part cannot be enforced, whatever definitions it refers to."""
        self._tried += 1
        if self._tried > _MOST_TRIED:
            raise TooCostly("too much of the schema cannot be held to; simplify it", self._param)
        try:
            self._compile({**part, "$defs": self._names} if self._names else part)
        except TooCostly:
            raise
        except InvalidRequest as error:
            return error
        return None

    def _kept(self, part: Any, where: str) -> Any:
        if not isinstance(part, Mapping) or (fault := self._fault(cast("Schema", part))) is None:
            return cast("Any", part)
        mine: Schema = dict(cast("Mapping[str, Any]", part))
        for key, at, inside in list(parts(mine)):
            _put(mine, key, at, self._kept(inside, ".".join(str(step) for step in (where, key, at) if step not in ("", None))))
        if mine != part and (fault := self._fault(mine)) is None:
            return mine
        return self._without(mine, where, fault)

    def _without(self, part: Schema, where: str, fault: InvalidRequest | None) -> Schema:
        """The part without the keywords at fault: one, or as many as necessary."""
        suspects = [key for key in part if key not in ("type", "properties", "required")]
        for key in suspects:
            less = {name: value for name, value in part.items() if name != key}
            if self._fault(less) is None:
                self._refuse(f"{where}.{key}".strip("."), fault)
                return less
        self._refuse(where, fault)
        less = dict(part)
        for key in suspects:
            del less[key]
            if self._fault(less) is None:
                return less
        raise InvalidRequest(f"{where}: {fault}" if where else str(fault), self._param)  # not even a schema

    def _refuse(self, where: str, fault: InvalidRequest | None) -> None:
        if self._strict:
            raise InvalidRequest(f"{where}: {fault}" if where else str(fault), self._param)
