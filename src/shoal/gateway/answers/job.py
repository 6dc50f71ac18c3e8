"""What one HTTP request asks of the engine, and how to write its answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from time import time
from typing import Any, ClassVar, Self

import msgspec

from shoal.errors import InvalidRequest
from shoal.gateway.answers.writer import Writer
from shoal.gateway.auth.key import KeyId
from shoal.gateway.engine import Engine
from shoal.gateway.http.request_id import ID, new_id
from shoal.gateway.schema.sampling import limit, sampling_params
from shoal.gateway.schema.wire import SampledBody
from shoal.request import MAX_CHOICES, Priority, Request, RequestId
from shoal.serving.response_cache import Question
from shoal.text.answer_format import AnswerFormat
from shoal.trace_context import TraceContext

_MAX_STOPS, _MAX_STOP_LENGTH = 4, 256
MANY_STOPS = 64
"""Most stop strings if an API sets no limit."""
CHOSEN = {"X-Request-Id": {"type": "string", "pattern": f"^{ID.pattern}$"}, "Cache-Control": {"type": "string"}}
"""The headers in which a client chooses an id, and says whether a kept answer will do."""
_TIERS = {"priority": Priority.URGENT, "fast": Priority.URGENT, "flex": Priority.FLEX, "batch": Priority.BATCH}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One engine request per prompt, and what they have in common. Each endpoint has its own kind, which knows how it is answered."""

    id: str
    requests: tuple[Request, ...]
    created: int
    """Seconds since 1970."""
    stops: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    format: AnswerFormat | None = None
    """How the answer writes reasoning and calls, if it may have any."""
    markers: tuple[int, ...] = ()
    """Special tokens that count as text in these answers."""
    named: bool = False
    """Whether the client chose the id, and so may come back for the answer."""
    seeded: bool = False
    """Whether the client chose the seed."""
    owner: KeyId = KeyId("")
    """The key that asked; nobody else may read the answer."""

    ping: ClassVar[bytes] = b": nothing new yet\n"
    """What an event stream sends after some time without news: a comment, which readers skip, unless the endpoint has its own line.

    No empty line follows it: after an event with an id, the openai package for Python would take it for the end of an event without data.
    """

    @abstractmethod
    def writer(self, engine: Engine) -> Writer:
        """A fresh writer: it remembers what it has written."""

    @property
    def choices(self) -> int:
        return sum(request.n for request in self.requests)

    @property
    def note(self) -> bytes:
        """Everything except the requests, for `kinds.recalled`."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, requests=()))

    @property
    def question(self) -> Question:
        """What the tokens of the answer depend on."""
        return Question(self.requests, self.stops, self.markers, self.seeded)

    def of(self, owner: KeyId, first: Priority, trace: TraceContext | None = None) -> Self:
        """The same job for that owner, in no class above `first`."""
        requests = tuple(msgspec.structs.replace(r, priority=max(r.priority, first), owner=owner, trace=trace) for r in self.requests)
        return msgspec.structs.replace(self, owner=owner, requests=requests)

    @property
    def service_tier(self) -> str:
        """The OpenAI name of the class that serves the requests; OpenAI has nothing below 'flex'."""
        return {Priority.URGENT: "priority", Priority.NORMAL: "default"}.get(self.requests[0].priority, "flex")

    @property
    def outlives(self) -> bool:
        """Whether the answer outlives the engine. A batch runner asks again, unless it named its request."""
        return self.named or any(request.priority is not Priority.BATCH for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(request.prompt) for request in self.requests)


class _Owned(msgspec.Struct):
    owner: KeyId = KeyId("")


def owner_of(note: bytes) -> KeyId:
    """The key that asked, from a job's note; no key if the note is not of this version."""
    try:
        return msgspec.msgpack.decode(note, type=_Owned).owner
    except msgspec.MsgspecError:
        return KeyId("")


def _stops(stop: str | list[str] | None, most: int) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > most:
        raise InvalidRequest(f"at most {most} stop strings are allowed, not {len(stops)}", "stop")
    if any(not s or len(s) > _MAX_STOP_LENGTH for s in stops):
        raise InvalidRequest(f"a stop string has 1 to {_MAX_STOP_LENGTH} characters", "stop")
    return tuple(stops)


def common(
    body: SampledBody,
    engine: Engine,
    prompts: Sequence[list[int]],
    *,
    prefix: str,
    max_tokens: int | None,
    logprobs: int | None,
    chosen: str | None,
    limited_by: str = "max_tokens",
    grammar: str = "",
    prompt_logprobs: int | None = None,
    most_stops: int = _MAX_STOPS,
) -> dict[str, Any]:
    """The fields of a job of any kind.

    prefix: of ids that no client chose
    max_tokens: of each choice; None: as many as fit after the prompt
    logprobs: None: none; else how many alternatives
    limited_by: the field that max_tokens came in
    grammar: that every choice must match
    prompt_logprobs: None: none; else how many alternatives of each of the prompts' tokens; max_tokens may then be 0
    most_stops: stop strings that the API allows

    Raises InvalidRequest, NotReady.
    """
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"n must lie in [1, {MAX_CHOICES}], not {n}", "n")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", "stream_options")
    if body.ignore_eos and grammar:
        raise InvalidRequest(
            "ignore_eos goes with no response_format and no tools: an answer that is held to a grammar ends with it", "ignore_eos"
        )
    sampling, longest = sampling_params(body, logprobs, grammar, engine.vocabulary), engine.longest()
    id = chosen or new_id(prefix)
    ends = frozenset[int]() if body.ignore_eos else engine.tokenizer.stop_tokens
    priority = _TIERS.get(body.service_tier or "", Priority.NORMAL)
    requests = tuple(
        Request(
            RequestId(f"{id}-{i}"),
            prompt,
            0 if max_tokens == 0 and prompt_logprobs is not None else limit(max_tokens, len(prompt), longest, limited_by),
            sampling,
            n,
            ends,
            priority,
            prompt_logprobs,
        )
        for i, prompt in enumerate(prompts)
    )
    return {
        "id": id,
        "requests": requests,
        "created": int(time()),
        "stops": _stops(body.stop, most_stops),
        "stream": bool(body.stream),
        "include_usage": body.stream_options is not None and body.stream_options.include_usage,
        "named": chosen is not None,
        "seeded": body.seed is not None,
    }
