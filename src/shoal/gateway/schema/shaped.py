"""Answers that are msgspec's structs: their JSON, and models of them for the OpenAPI document."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, create_model


def told(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")


@cache
def shaped(kind: type[msgspec.Struct]) -> type[BaseModel]:
    """A model of what a struct becomes as JSON. Structs that are arrays there are lists of anything."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {
        field.encode_name: (_shaped(hints[field.name]), ...) if field.required else (_shaped(hints[field.name]), None)
        for field in msgspec.structs.fields(kind)
    }
    if kind.__struct_config__.tag is not None:
        fields[kind.__struct_config__.tag_field or "type"] = (cast(Any, Literal)[kind.__struct_config__.tag], ...)
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid", defer_build=True), **fields)


def _shaped(hint: Any) -> Any:
    """The same type with models in the place of structs: of structs, lists and dictionaries of them, one of several, and None beside them."""
    if _is_struct(hint):
        return list[Any] if hint.__struct_config__.array_like else shaped(hint)
    origin, inner = get_origin(hint), [_shaped(argument) for argument in get_args(hint)]
    if origin in (list, tuple):  # tuples of any length
        return list.__class_getitem__(inner[0])
    if origin is dict:
        return dict.__class_getitem__((inner[0], inner[1]))
    if NoneType in inner:
        return next(part for part in inner if part is not NoneType) | None
    if origin is UnionType:
        return cast(Any, Union)[tuple(inner)]
    return hint


def _is_struct(hint: Any) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)
