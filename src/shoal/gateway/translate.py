"""From a public request to internal ones: text becomes tokens, parameters become SamplingParams."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from time import time
from typing import Any, cast

import msgspec

from shoal.errors import InvalidRequest
from shoal.gateway.engine import Engine
from shoal.gateway.openai import ChatRequest, CompletionRequest
from shoal.request import MAX_CHOICES, Request, RequestId, SamplingParams

_MAX_STOPS, _MAX_STOP_LENGTH, _MAX_PROMPTS = 4, 256, 64
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Job(msgspec.Struct, frozen=True):
    """What one HTTP request asks for: a request per prompt."""

    id: str
    chat: bool
    requests: tuple[Request, ...]
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: bool
    created: int
    """Seconds since 1970."""
    named: bool = False
    """The client chose the id, and so may come back for the answer."""

    @property
    def choices(self) -> int:
        return sum(request.n for request in self.requests)

    @property
    def note(self) -> bytes:
        """All but the requests, for `recalled`."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, requests=()))

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


def recalled(note: bytes, requests: Sequence[Request]) -> Job:
    """Raises msgspec.MsgspecError for a note that is none of this version's."""
    return msgspec.structs.replace(msgspec.msgpack.decode(note, type=Job), requests=tuple(requests))


def chosen_id(header: str | None) -> str | None:
    """The id that a client chose in X-Request-Id. Raises InvalidRequest."""
    if header is not None and _ID.fullmatch(header) is None:
        raise InvalidRequest(
            "X-Request-Id has 1 to 128 letters, digits, dots, colons, dashes and underscores, and begins with a letter or a digit",
            "X-Request-Id",
        )
    return header


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > _MAX_STOPS:
        raise InvalidRequest(f"at most {_MAX_STOPS} stop strings are possible, not {len(stops)}", "stop")
    if any(not s or len(s) > _MAX_STOP_LENGTH for s in stops):
        raise InvalidRequest(f"a stop string has 1 to {_MAX_STOP_LENGTH} characters", "stop")
    return tuple(stops)


def _sampling(body: ChatRequest | CompletionRequest, logprobs: int | None, vocabulary: int) -> SamplingParams:
    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise InvalidRequest("logit_bias maps token numbers to values", "logit_bias") from None
    params = SamplingParams(
        temperature=given(body.temperature, 1.0),
        top_k=given(body.top_k, 0),
        top_p=given(body.top_p, 1.0),
        min_p=given(body.min_p, 0.0),
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=bias,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**64,
        logprobs=logprobs,
    )
    params.check(vocabulary)
    return params


def _job(
    body: ChatRequest | CompletionRequest,
    engine: Engine,
    prompts: list[list[int]],
    limit: int | None,
    logprobs: int | None,
    chosen: str | None,
) -> Job:
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"n must lie in [1, {MAX_CHOICES}], not {n}", "n")
    if limit is not None and limit < 1:
        raise InvalidRequest("max_tokens must be at least 1", "max_tokens")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", "stream_options")
    sampling, stops, longest = _sampling(body, logprobs, engine.vocabulary), _stops(body.stop), engine.longest()
    chat = isinstance(body, ChatRequest)
    id = chosen or ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
    requests = tuple(
        Request(
            RequestId(f"{id}-{i}"),
            prompt,
            max(longest - len(prompt), 1) if limit is None else limit,
            sampling,
            n,
            engine.tokenizer.stop_tokens,
        )
        for i, prompt in enumerate(prompts)
    )
    usage = body.stream_options is not None and body.stream_options.include_usage
    named = chosen is not None
    return Job(id, chat, requests, stops, bool(body.stream), usage, logprobs is not None, int(time()), named)


def chat(body: ChatRequest, engine: Engine, chosen: str | None = None) -> Job:
    """chosen: the answer's id. Raises InvalidRequest, NotReady."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("give max_completion_tokens or max_tokens, not both", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    prompt = engine.tokenizer.encode_chat([message.plain() for message in body.messages])
    limit = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    return _job(body, engine, [prompt], limit, (body.top_logprobs or 0) if body.logprobs else None, chosen)


def completion(body: CompletionRequest, engine: Engine, chosen: str | None = None) -> Job:
    """Raises InvalidRequest, NotReady. Without max_tokens it is 16, as OpenAI's API has it."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        prompts = [engine.tokenizer.encode(prompt)]
    elif prompt and isinstance(prompt[0], int):
        prompts = [cast("list[int]", prompt)]
    else:
        many = cast("list[str | list[int]]", prompt)
        prompts = [engine.tokenizer.encode(p) if isinstance(p, str) else p for p in many]
    if not 1 <= len(prompts) <= _MAX_PROMPTS:
        raise InvalidRequest(f"between 1 and {_MAX_PROMPTS} prompts are possible, not {len(prompts)}", "prompt")
    for tokens in prompts:
        if any(not 0 <= token < engine.vocabulary for token in tokens):
            raise InvalidRequest(f"the prompt has a token outside the vocabulary of {engine.vocabulary}", "prompt")
    return _job(body, engine, prompts, 16 if body.max_tokens is None else body.max_tokens, body.logprobs, chosen)
