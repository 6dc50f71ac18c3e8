"""What every endpoint works with: the engine, the answers under way, and the way from a body to a response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from shoal.config import ApiSettings
from shoal.errors import InvalidRequest, ShoalError, UnknownModel
from shoal.gateway.answer import Answer, TakenOver
from shoal.gateway.answers import Answers
from shoal.gateway.engine import Engine
from shoal.gateway.events import Position, events
from shoal.gateway.faults import fault
from shoal.gateway.job import Job, chosen_id
from shoal.gateway.wire import Sampled, parse
from shoal.gateway.writer import Piece
from shoal.request import Priority

MAX_BODY = 4 << 20
"""Bytes of a request."""

B = TypeVar("B", bound=Sampled)


class Service:
    def __init__(self, engine: Engine, settings: ApiSettings) -> None:
        self.engine, self.settings = engine, settings
        self.answers = Answers(engine)

    def check_model(self, name: str | None) -> None:
        """Raises UnknownModel."""
        if name is not None and name != self.engine.name:
            raise UnknownModel(name, [self.engine.name])

    async def respond(self, request: Request, endpoint: str, kind: type[B], prepare: Callable[[B, Engine, str | None], Job]) -> Response:
        """Answers a body of some kind. `prepare` runs in a thread: templates and tokenisers take their time. Raises ShoalError."""
        try:
            chosen = chosen_id(request.headers.get("x-request-id"))
            body = parse(kind, await json_body(request))
            self.check_model(body.model)
            job = (await asyncio.to_thread(prepare, body, self.engine, chosen)).within(highest(request))
            answer = await self.answers.begin(job)
            response = Streaming(self.answers, answer) if job.stream else await whole(request, self.answers, answer)
        except ShoalError as error:
            self.engine.observe_request(endpoint, str(fault(error).status), 0)
            raise
        self.engine.observe_request(endpoint, "accepted", job.prompt_tokens)
        return response


def highest(request: Request) -> Priority:
    """The highest class that a request may run in: what whoever let it in says, and what X-Priority does not give away.

    Raises InvalidRequest.
    """
    most: Priority = getattr(request.state, "most_urgent", Priority.URGENT)
    if (name := request.headers.get("x-priority")) is None:
        return most
    if name.upper() not in Priority.__members__:
        raise InvalidRequest(f"X-Priority is one of {', '.join(p.name.lower() for p in Priority)}", "X-Priority")
    return max(most, Priority[name.upper()])


async def json_body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises InvalidRequest, HTTPException (413)."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > MAX_BODY:
            raise HTTPException(413, f"the request is larger than {MAX_BODY} bytes")
    try:
        body = json.loads(raw.decode())
        json.dumps(body, ensure_ascii=False).encode()  # a lone surrogate is no text
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the body has a lone surrogate, which is no character: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return cast("dict[str, Any]", body)


class Streaming(StreamingResponse):
    """An answer's events to one reader, who leaves in any case."""

    def __init__(self, answers: Answers, answer: Answer, after: Position | None = None) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Request-Id": answer.job.id}
        super().__init__(events(answer, answer.writer(), after), media_type="text/event-stream", headers=headers)
        self._leave = lambda: answers.leave(answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def whole(request: Request, answers: Answers, answer: Answer) -> Response:
    """Collects the answer, unless the client leaves first."""

    async def collect() -> list[Piece]:
        return [piece async for piece in answer.read()]

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; nginx's code for a client that closed the request
        written = answer.writer().whole(collecting.result(), answer.usage)
        return JSONResponse(written, headers={"X-Request-Id": answer.job.id})
    except TakenOver:
        return Response(status_code=499)  # it is read as a stream by now
    finally:
        for task in (collecting, leaving):
            task.cancel()
        await asyncio.gather(collecting, leaving, return_exceptions=True)
        answers.leave(answer)
