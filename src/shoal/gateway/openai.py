"""The wire models of OpenAI's API, as far as shoal serves it. Fields that are not here are refused, never ignored."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.errors import InvalidRequest

# Fields of OpenAI's API that shoal does not serve (yet), with the values that ask for nothing.
_INERT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
    "suffix": (None, ""),
    "echo": (None, False),
    "best_of": (None, 1),
}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Wire):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Sampled(_Wire):
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
    user: str | None = None


class TextPart(_Wire):
    type: Literal["text"]
    text: str


class Message(_Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates know messages."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Sampled):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(_Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None


W = TypeVar("W", bound=_Wire)


def parse(kind: type[W], body: dict[str, Any]) -> W:
    """Raises InvalidRequest, naming the field."""
    known = dict(body)
    for name, inert in _INERT.items():
        if name in known and not any(type(value) is type(known[name]) and value == known[name] for value in inert):
            raise InvalidRequest(f"'{name}' is not supported" + ("; use n" if name == "best_of" else ""), name, "unsupported_parameter")
        known.pop(name, None)
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        first = cast("dict[str, Any]", error.errors(include_url=False)[0])
        where = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in ("str", "int"))))
        if first["type"] == "extra_forbidden":
            raise InvalidRequest(f"unknown parameter '{where}'", where, "unknown_parameter") from None
        raise InvalidRequest(f"{where or 'the request'}: {first['msg']}", where or None) from None
