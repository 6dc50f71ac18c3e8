"""What the endpoints' bodies have in common. Fields that are not declared are refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from shoal.errors import InvalidRequest


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)  # built when first used: the head starts sooner

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that this endpoint does not support, with the values that request nothing."""
    instead: ClassVar[dict[str, str]] = {}
    """For some of those: the field that serves the same purpose."""


class Echoed(Wire):
    """Part of a conversation that a client has from an answer, and sends back: fields without a value are as good as not there."""

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {*cls.model_fields, *(field.alias for field in cls.model_fields.values())}
        return {name: each for name, each in cast("dict[str, Any]", value).items() if each is not None or name in known}


ServiceTier = Literal["default", "flex", "priority"]
"""The class that served a request."""


class Shape(BaseModel):
    """What an answer has: all that is declared, and nothing else."""

    model_config = ConfigDict(extra="forbid", defer_build=True)


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


def _short_keys(pairs: dict[str, str]) -> dict[str, str]:
    if any(len(key) > 64 for key in pairs):
        raise PydanticCustomError("key_too_long", "a key has at most 64 characters")
    return pairs


Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16), AfterValidator(_short_keys)]
"""Pairs of text, which mean nothing to the model."""


class ModelBody(Wire):
    """A body that asks the model something."""

    model: str | None = None


class SampledBody(ModelBody):
    """A body that asks for tokens as OpenAI's API does. Those of other APIs are translated into it."""

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
    service_tier: Literal["auto", "default", "flex", "batch", "priority", "fast"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None


class PromptDetails(Shape):
    cached_tokens: int
    audio_tokens: int


class CompletionDetails(Shape):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageAnswer(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def kind_of(raw: object) -> str:
    """Whether a tool, or a call of one, is a function or a custom tool; in brackets: not part of the field's name."""
    kind = cast("dict[str, Any]", raw).get("type") if isinstance(raw, dict) else getattr(raw, "type", None)
    return "[custom]" if kind == "custom" else "[function]"


W = TypeVar("W", bound=Wire)


def parse(kind: type[W], body: dict[str, Any]) -> W:
    """Raises InvalidRequest, naming the field."""
    known = dict(body)
    for name, inert in kind.inert.items():
        if name in known and not any(type(value) is type(known[name]) and value == known[name] for value in inert):
            hint = f"; use '{kind.instead[name]}'" if name in kind.instead else ""
            raise InvalidRequest(f"'{name}' is not supported{hint}", name, "unsupported_parameter")
        known.pop(name, None)
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _refusal(cast("list[dict[str, Any]]", error.errors(include_url=False))) from None


def _refusal(errors: list[dict[str, Any]]) -> InvalidRequest:
    """The refusal for the first error; if a value may be of several kinds, for the kind that it comes closest to."""
    same = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    deepest = max(len(error["loc"]) for error in same)
    closest = [error for error in same if len(error["loc"]) == deepest]
    kinds = {tuple(part for part in cast("tuple[str | int, ...]", error["loc"]) if _kind(part)) for error in closest}
    worst = closest[0] if len(kinds) == 1 else errors[0]
    unknown = worst["type"] == "extra_forbidden"
    last = len(worst["loc"]) - 1
    parts = [part for at, part in enumerate(worst["loc"]) if (unknown and at == last) or not _kind(part)]
    where = ".".join(map(str, parts))
    if unknown:
        return InvalidRequest(f"unknown parameter '{where}'", where, "unknown_parameter")
    code = "unsupported_parameter" if worst["type"] == "unsupported_parameter" else None
    return InvalidRequest(f"{where or 'the request'}: {worst['msg']}", where or None, code)


def _kind(part: str | int) -> bool:
    """Whether part of an error's location is not a field but one of the kinds that the value may have."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "none") or part[:1].isupper())
