"""What the endpoints' bodies have in common. Fields that are not declared are refused, never ignored."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from shoal.errors import InvalidRequest


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that this endpoint does not serve, with the values that ask for nothing."""


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(Wire):
    """A body that asks for tokens."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False
    service_tier: Literal["auto", "default", "flex", "batch", "priority"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


W = TypeVar("W", bound=Wire)


def parse(kind: type[W], body: dict[str, Any]) -> W:
    """Raises InvalidRequest, naming the field."""
    known = dict(body)
    for name, inert in kind.inert.items():
        if name in known and not any(type(value) is type(known[name]) and value == known[name] for value in inert):
            raise InvalidRequest(f"'{name}' is not supported", name, "unsupported_parameter")
        known.pop(name, None)
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        first = cast("dict[str, Any]", error.errors(include_url=False)[0])
        where = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in ("str", "int"))))
        if first["type"] == "extra_forbidden":
            raise InvalidRequest(f"unknown parameter '{where}'", where, "unknown_parameter") from None
        raise InvalidRequest(f"{where or 'the request'}: {first['msg']}", where or None) from None
