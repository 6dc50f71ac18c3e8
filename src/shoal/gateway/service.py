"""What all endpoints use: the engines, the unfinished answers, and the way from a body to a response."""

from __future__ import annotations

import asyncio
import json
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.config import ApiSettings
from shoal.errors import InvalidRequest, ShoalError, TooLarge, WrongMediaType
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.events import Position, events
from shoal.gateway.answers.job import Job
from shoal.gateway.answers.under_way import Answers, Watcher
from shoal.gateway.answers.writer import Piece, Writer
from shoal.gateway.auth.caller import Caller
from shoal.gateway.auth.key import KeyId
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.auth.limits import Limiter
from shoal.gateway.engine import Engine, TakenOver
from shoal.gateway.engines import Engines
from shoal.gateway.http.faults import fault
from shoal.gateway.http.in_flight import InFlight
from shoal.gateway.http.request_id import chosen_id
from shoal.gateway.http.request_span import SPAN, part
from shoal.gateway.http.tracing import RequestTraces
from shoal.gateway.http.work import LARGE, work
from shoal.gateway.schema.wire import ModelBody, parse
from shoal.request import Request as ModelRequest

MAX_BODY = 4 << 20
"""Most bytes of a request body."""

MAX_DEPTH = 200
"""Deepest nesting of arrays and objects in a body."""

MAX_VALUES = 50_000
"""Most arrays, objects and values in them in a body, except lists of tokens: reading a million of them takes seconds."""

_TOKENS = frozenset({"prompt", "input", "tokens", "context"})
"""Fields that may be lists of tokens."""
_MOST_TEXTS = 4096  # or other items, in one of them

_LONG = re.compile(rb"[0-9]{19}")
"""An integer of more than 64 bits contains this."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_OPERATIONS = {"completions": "text_completion", "ollama_generate": "text_completion", "embeddings": "embeddings"}
"""Names of what an endpoint does, in traces; the others chat."""

B = TypeVar("B", bound=ModelBody)


T = TypeVar("T")


@dataclass
class Seen:
    """What is known of a request when it is counted."""

    engine: Engine | None = None
    """Of the model that it asks for."""
    prompt_tokens: int = 0


class Service:
    def __init__(
        self,
        engines: Engines,
        settings: ApiSettings,
        keyring: Keyring,
        limiter: Limiter,
        recalled: Callable[[bytes, Sequence[ModelRequest]], Job],
        watcher: Watcher,
    ) -> None:
        """recalled, watcher: see Answers."""
        self.engines, self.settings = engines, settings
        self.in_flight, self.keyring, self.limiter = InFlight(), keyring, limiter
        self.answers = Answers(engines, recalled, watcher, self._caller_of, settings.ping)
        self.traces = RequestTraces(settings.trace_sample, engines.traced) if settings.traces else None

    def state(self, model: str | None = None) -> str:
        """'' while requests are accepted, or those for a model; otherwise why not. Raises UnknownModel."""
        if self.in_flight.closing:
            return "the server is shutting down"
        return self.engines.state if model is None else self.engines.states[self.engines.resolve(model)]

    def _caller_of(self, owner: KeyId) -> Caller:
        return Caller(self.keyring, self.limiter, self.keyring.known(owner))

    async def engine(self, body: dict[str, Any], seen: Seen | None = None) -> Engine:
        """Of the model that a body names, or of the default. Raises UnknownModel, NotReady."""
        name = body.get("model")
        if not isinstance(name, str):
            name = None  # if it is anything else, parsing the body says so
        elif (span := SPAN.get()) is not None:
            span.attributes["gen_ai.request.model"] = name
        engine = await self.engines.find(name)
        if seen is not None:
            seen.engine = engine
        return engine

    async def respond(self, request: Request, endpoint: str, kind: type[B], prepare: Callable[[B, Engine, str | None], Job]) -> Response:
        """Answers a body of some kind. `prepare` runs in a thread, because templates and tokenisers take time. Raises ShoalError."""
        with self.observed(endpoint) as seen:
            chosen = chosen_id(request.headers.get("x-request-id"))
            body = await json_body(request)
            answer = await self.begin(body, kind, prepare, seen, chosen, size=request.state.size)
            return Streaming(self.answers, answer) if answer.job.stream else await whole(request, self.answers, answer)

    @contextmanager
    def observed(self, endpoint: str) -> Generator[Seen]:
        """Counts a request in the metrics, as accepted or by the status of its refusal."""
        seen = Seen()
        if (span := SPAN.get()) is not None:
            span.attributes["gen_ai.operation.name"] = _OPERATIONS.get(endpoint, "chat")
        try:
            yield seen
        except ShoalError as error:
            self.refused(endpoint, seen, error)
            raise
        self.accepted(endpoint, seen)

    def accepted(self, endpoint: str, seen: Seen) -> None:
        (seen.engine or self.engines).observe_request(endpoint, "accepted", seen.prompt_tokens)

    def refused(self, endpoint: str, seen: Seen, error: ShoalError) -> None:
        (seen.engine or self.engines).observe_request(endpoint, str(fault(error).status), 0)

    async def begin(
        self,
        body: dict[str, Any],
        kind: type[B],
        prepare: Callable[[B, Engine, str | None], Job],
        seen: Seen,
        chosen: str | None = None,
        size: int = 0,
    ) -> Answer:
        """The answer to a body of `size` bytes; its reader counts as present. Raises ShoalError."""
        engine = await self.engine(body, seen)
        with part("prepare"):
            job = await work(size, lambda: prepare(parse(kind, body), engine, chosen))
        answer = await self.answers.begin(job, engine)
        seen.prompt_tokens = job.prompt_tokens
        return answer


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object; its size in bytes goes to `request.state.size`. Raises InvalidRequest, TooLarge, WrongMediaType."""
    raw = await raw_body(request)
    request.state.size = len(raw)
    return await parsed(raw)


async def parsed(raw: bytes | bytearray) -> dict[str, Any]:
    """The JSON object; a large one is read in a thread. Raises InvalidRequest, QueueFull."""
    return json_object(raw) if len(raw) < LARGE else await work(len(raw), json_object, raw)


async def raw_body(request: Request) -> bytearray:
    """The bytes of the body. Raises TooLarge, WrongMediaType."""
    check_media_type(request.headers.get("content-type"))
    raw = bytearray()
    if int(request.headers.get("content-length", 0)) > MAX_BODY:  # the server has checked that it is a number
        raise TooLarge("the request", MAX_BODY)
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY:
            raise TooLarge("the request", MAX_BODY)
    return raw


def json_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Raises InvalidRequest."""
    check_depth(raw)
    try:
        body = json.loads(raw.removeprefix(BOM_UTF8).decode(), parse_int=_integer if _LONG.search(raw) else None)
        written = json.dumps(body, ensure_ascii=False)
        written.encode()  # a lone surrogate is not text
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the body has a lone surrogate, which is not a character: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    if len(raw) > MAX_VALUES:
        _check_values(cast("dict[str, Any]", body))
    if "NaN" in written or "Infinity" in written:  # as numbers, or in a text
        for name, value in cast("dict[str, Any]", body).items():
            if not _finite(value):
                raise InvalidRequest(f"{name}: NaN and infinity are not JSON", name)
    return cast("dict[str, Any]", body)


def _check_values(body: dict[str, Any]) -> None:
    """Raises InvalidRequest for too many values: the validator builds an error for each wrong one, which takes microseconds."""
    left = MAX_VALUES - len(body)
    todo: list[tuple[Any, bool]] = [(value, name in _TOKENS) for name, value in body.items()]
    while todo and left >= 0:
        value, tokens = todo.pop()
        if not isinstance(value, (dict, list)) or (
            tokens and isinstance(value, list) and set(map(type, cast("list[Any]", value))) == {int}
        ):
            continue
        inside = cast("list[Any]", list(cast("dict[str, Any]", value).values()) if isinstance(value, dict) else value)
        left -= len(inside) if not tokens or len(inside) < _MOST_TEXTS else MAX_VALUES
        if left >= 0:
            todo += [(part, tokens and isinstance(value, list)) for part in inside if isinstance(part, (dict, list))]
    if left < 0:
        raise InvalidRequest(f"the body has more than {MAX_VALUES} values other than tokens")


def _finite(value: Any) -> bool:
    """Whether all numbers in it are finite."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _integer(digits: str) -> int:
    """Raises InvalidRequest for an integer that nothing else can represent: neither MessagePack nor most JSON parsers support it."""
    if len(digits) > 20 or not -(2**63) <= (value := int(digits)) < 2**64:
        raise InvalidRequest(f"the body has an integer that does not fit into 64 bits: {digits[:24]}")
    return value


def check_media_type(given: str | None) -> None:
    """Raises WrongMediaType. A body that `curl -d` labels as a form is accepted as JSON."""
    kind = (given or "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json", "application/x-www-form-urlencoded") and not re.fullmatch(r"application/.+\+json", kind):
        raise WrongMediaType(kind)


def check_depth(raw: bytes | bytearray) -> None:
    """Checks a body before it is parsed: a parser's recursion uses the process's stack, and many small parts take long. Raises
    InvalidRequest."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    outside = raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]  # outside strings
    brackets = b"".join(outside).translate(None, _NO_BRACKETS)
    if brackets.count(b"[") + brackets.count(b"{") > MAX_VALUES:
        raise InvalidRequest(f"the body has more than {MAX_VALUES} arrays and objects")
    steps = (1 if byte in b"[{" else -1 for byte in brackets)
    if any(depth > MAX_DEPTH for depth in accumulate(steps)):
        raise InvalidRequest(f"the body has more than {MAX_DEPTH} levels of arrays and objects")


class Streaming(StreamingResponse):
    """An answer's events to one reader, which is always detached at the end. Server-sent events, unless another format and
    media type are given."""

    def __init__(
        self,
        answers: Answers,
        answer: Answer,
        after: Position | None = None,
        written: Callable[[Answer, Writer, Position | None, float], AsyncIterator[bytes]] = events,
        media: str = "text/event-stream",
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Request-Id": answer.job.id}
        super().__init__(written(answer, answer.writer(), after, answers.patience), media_type=media, headers=headers)
        self._leave = lambda: answers.leave(answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _disconnected(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_left(request: Request, work: Awaitable[T]) -> T | None:
    """Does the work; None, with the work cancelled, if the client left before it was done."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def whole(request: Request, answers: Answers, answer: Answer) -> Response:
    """Collects the answer, unless the client leaves first."""

    async def collect() -> list[Piece]:
        return [piece async for piece in answer.read()]

    try:
        if (pieces := await unless_left(request, collect())) is None:
            return Response(status_code=499)  # nobody reads it; nginx's code for a client that closed the request
        return JSONResponse(answer.writer().whole(pieces, answer.usage), headers={"X-Request-Id": answer.job.id})
    except TakenOver:
        return Response(status_code=499)  # it is read as a stream by now
    finally:
        answers.leave(answer)
