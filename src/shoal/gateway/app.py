"""The HTTP application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from shoal import __version__
from shoal.errors import InvalidRequest, ShoalError, UnknownModel
from shoal.gateway import openai, translate
from shoal.gateway.answer import Answer, Piece, TakenOver, Writer
from shoal.gateway.answers import Answers
from shoal.gateway.engine import Engine
from shoal.gateway.events import Position, events, position
from shoal.gateway.faults import Fault, fault
from shoal.gateway.translate import Job, chosen_id

MAX_BODY = 4 << 20
"""Bytes of a request."""


def _answer(what: Fault) -> JSONResponse:
    headers = {} if what.retry_after is None else {"Retry-After": str(what.retry_after)}
    return JSONResponse(what.body, what.status, headers)


async def _body(request: Request) -> dict[str, Any]:
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


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Streaming(StreamingResponse):
    """An answer's events to one reader, who leaves in any case."""

    def __init__(self, answers: Answers, answer: Answer, writer: Writer, after: Position | None = None) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Request-Id": answer.job.id}
        super().__init__(events(answer, writer, after), media_type="text/event-stream", headers=headers)
        self._leave = lambda: answers.leave(answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _whole(request: Request, answers: Answers, answer: Answer, writer: Writer) -> Response:
    """Collects the answer, unless the client leaves first."""

    async def collect() -> list[Piece]:
        return [piece async for piece in answer.read()]

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)  # nobody reads it; nginx's code for a client that closed the request
        return JSONResponse(writer.whole(collecting.result(), answer.usage), headers={"X-Request-Id": answer.job.id})
    except TakenOver:
        return Response(status_code=499)  # it is read as a stream by now
    finally:
        for task in (collecting, leaving):
            task.cancel()
        await asyncio.gather(collecting, leaving, return_exceptions=True)
        answers.leave(answer)


def create_app(engine: Engine) -> FastAPI:
    app = FastAPI(title="shoal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    answers = Answers(engine)

    def check_model(name: str | None) -> None:
        if name is not None and name != engine.name:
            raise UnknownModel(name, [engine.name])

    async def respond(request: Request, endpoint: str, prepare: Callable[[dict[str, Any], str | None], Awaitable[Job]]) -> Response:
        prompt_tokens = 0
        try:
            chosen = chosen_id(request.headers.get("x-request-id"))
            job = await prepare(await _body(request), chosen)
            prompt_tokens = job.prompt_tokens
            answer, writer = await answers.begin(job), Writer(job, engine)
            if job.stream:
                response: Response = _Streaming(answers, answer, writer)
            else:
                response = await _whole(request, answers, answer, writer)
        except ShoalError as error:
            what = fault(error)
            engine.observe_request(endpoint, str(what.status), 0)
            return _answer(what)
        engine.observe_request(endpoint, "accepted", prompt_tokens)
        return response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        message = str(error.detail) if error.status_code != 404 else f"no such endpoint: {request.method} {request.url.path}"
        return _answer(Fault(error.status_code, message, "invalid_request_error"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:  # pyright: ignore[reportUnusedFunction]
        return _answer(Fault(500, "an unexpected error; the server's log says more", "server_error"))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        async def prepare(body: dict[str, Any], chosen: str | None) -> Job:
            wire = openai.parse(openai.ChatRequest, body)
            check_model(wire.model)
            return await asyncio.to_thread(translate.chat, wire, engine, chosen)

        return await respond(request, "chat", prepare)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        async def prepare(body: dict[str, Any], chosen: str | None) -> Job:
            wire = openai.parse(openai.CompletionRequest, body)
            check_model(wire.model)
            return await asyncio.to_thread(translate.completion, wire, engine, chosen)

        return await respond(request, "completions", prepare)

    @app.get("/v1/streams/{id}")
    async def stream(request: Request, id: str, after: str | None = None) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            answer = answers.find(id)
            since = position(request.headers.get("last-event-id", after), answer.job.choices)
        except ShoalError as error:
            return _answer(fault(error))
        answers.enter(answer)
        return _Streaming(answers, answer, Writer(answer.job, engine), since)

    def model_card() -> dict[str, Any]:
        return {"id": engine.name, "object": "model", "created": engine.created, "owned_by": "shoal"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [model_card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            check_model(name)
        except UnknownModel as error:
            return _answer(fault(error))
        return JSONResponse(model_card())

    @app.get("/health")
    async def health() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"live": True, "ready": not engine.state, "reason": engine.state}

    @app.get("/health/live")
    async def live() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"live": True}

    @app.get("/health/ready")
    async def ready() -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"ready": not engine.state, "reason": engine.state}, 503 if engine.state else 200)

    @app.get("/metrics")
    async def metrics() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(engine.scrape(), media_type="text/plain; version=0.0.4")

    return app
