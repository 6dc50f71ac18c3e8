"""Ollama's endpoints. They stream by default, one JSON object per line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from time import perf_counter, time
from typing import Any, TypeVar, cast

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from shoal.errors import InvalidRequest
from shoal.gateway.answers.answer import Answer
from shoal.gateway.answers.events import PING, Position, told
from shoal.gateway.answers.job import CHOSEN
from shoal.gateway.answers.writer import Writer
from shoal.gateway.endpoints.embeddings.embed import embed, inputs, written
from shoal.gateway.endpoints.embeddings.wire import EmbeddingRequest
from shoal.gateway.endpoints.ollama.answer import (
    OllamaChatted,
    OllamaEmbedded,
    OllamaEmbedding,
    OllamaGenerated,
    OllamaRunning,
    OllamaShown,
    OllamaTags,
    OllamaVersion,
)
from shoal.gateway.endpoints.ollama.catalogue import named, running, shown, tagged, tags
from shoal.gateway.endpoints.ollama.job import OllamaJob, chat_job, generate_job, options_of
from shoal.gateway.endpoints.ollama.wire import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    Loading,
    ShowRequest,
    Speaking,
)
from shoal.gateway.endpoints.ollama.writer import OllamaWriter, nanoseconds
from shoal.gateway.engine import Engine
from shoal.gateway.engines import Engines
from shoal.gateway.http.dialect import OLLAMA
from shoal.gateway.http.request_id import chosen_id
from shoal.gateway.http.request_span import part
from shoal.gateway.http.work import work
from shoal.gateway.schema.contract import LINES, REFUSALS, contract
from shoal.gateway.schema.moment import moment
from shoal.gateway.schema.wire import ModelBody, parse
from shoal.gateway.service import Seen, Service, Streaming, json_body, unless_left, whole

VERSION = "0.12.11"
"""Version of Ollama's API, as far as it is supported here: some clients require a minimum."""

_SPOKEN = (OLLAMA,)
_CHANGES = {"pull": "POST", "push": "POST", "create": "POST", "copy": "POST", "delete": "DELETE"}
"""Ollama's operations on its store of models."""

A = TypeVar("A", bound=ModelBody)
S = TypeVar("S", bound=Speaking)
L = TypeVar("L", bound=Loading)


async def lines(answer: Answer, writer: Writer, after: Position | None = None, patience: float = 0) -> AsyncGenerator[bytes]:
    """An answer's events as JSON objects, one per line. patience: seconds of silence after which a line without news is sent;
    0: never."""
    waiting = cast("OllamaWriter", writer).waiting()
    async with aclosing(told(answer, writer, after, patience)) as all:
        async for _, event in all:
            yield msgspec.json.encode((waiting if event is PING else event).data) + b"\n"


async def _body(request: Request, engines: Engines) -> tuple[dict[str, Any], str | None]:
    """The body, and the client's name for its model; in the body it is replaced by the name here."""
    body = await json_body(request)
    name = body.get("model")
    if not isinstance(name, str):
        return body, None
    return {**body, "model": named(name, engines)}, name


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    async def parsed(request: Request, kind: type[A], seen: Seen) -> tuple[A, Engine, str]:
        """The body, the engine of its model, and the client's name for that. Raises InvalidRequest, UnknownModel, NotReady."""
        body, name = await _body(request, service.engines)
        engine = await service.engine(body, seen)
        return await work(request.state.size, parse, kind, body), engine, name or tagged(engine.name)

    async def speak(
        request: Request,
        endpoint: str,
        kind: type[S],
        prepare: Callable[[S, Engine, str | None, str], OllamaJob],
        asks: Callable[[S], bool],
    ) -> Response:
        """asks: whether a body has a prompt; a body without one only asks to load the model."""
        with service.observed(endpoint) as seen:
            chosen = chosen_id(request.headers.get("x-request-id"))
            body, engine, name = await parsed(request, kind, seen)
            if not asks(body):
                return _loaded(body, engine, name, kind is ChatRequest)
            with part("prepare"):
                job = await work(request.state.size, prepare, body, engine, chosen, name)
            answer = await service.answers.begin(job, engine)
            seen.prompt_tokens = answer.job.prompt_tokens
            if answer.job.stream:
                return Streaming(service.answers, answer, written=lines, media=LINES)
            return await whole(request, service.answers, answer)

    def _loaded(body: Loading, engine: Engine, name: str, chat: bool) -> Response:
        if body.keep_alive in (0, "0", "0s"):
            raise InvalidRequest("the model stays loaded while this server runs: keep_alive 0 cannot unload it", "keep_alive")
        engine.longest()  # raises NotReady if it is not loaded
        said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        return JSONResponse({"model": name, "created_at": moment(time()), **said, "done": True, "done_reason": "load"})

    described = partial(contract, dialects=_SPOKEN)

    @router.post(
        "/api/generate", **described(GenerateRequest, OllamaGenerated, 404, 409, 499, 503, 504, lines=OllamaGenerated, headers=CHOSEN)
    )
    async def generate(request: Request) -> Response:
        return await speak(request, "ollama_generate", GenerateRequest, generate_job, lambda body: bool(body.prompt))

    @router.post("/api/chat", **described(ChatRequest, OllamaChatted, 404, 409, 499, 503, 504, lines=OllamaChatted, headers=CHOSEN))
    async def chat(request: Request) -> Response:
        return await speak(request, "ollama_chat", ChatRequest, chat_job, lambda body: bool(body.messages))

    async def embedded(request: Request, kind: type[L], asks: Callable[[L], EmbedRequest]) -> tuple[str, list[list[float]], int] | None:
        """The client's name for the model, the vectors, and the number of tokens in the texts; None if the client left."""
        with service.observed("ollama_embed") as seen:
            body, engine, name = await parsed(request, kind, seen)

            def prepared() -> tuple[EmbeddingRequest, list[list[int]]]:
                asked = asks(body)
                options_of(asked.options)
                texts = [asked.input] if isinstance(asked.input, str) else asked.input
                given = _cut(texts, engine) if asked.truncate is not False else texts
                wanted = EmbeddingRequest(input=given, dimensions=asked.dimensions)
                return wanted, inputs(wanted, engine) if texts else []

            wanted, prompts = await work(request.state.size, prepared)
            if not prompts:
                return name, [], 0
            seen.prompt_tokens = sum(map(len, prompts))
            vectors = await unless_left(request, embed(prompts, engine))
            if vectors is None:
                return None
            told = await work(request.state.size, written, vectors, wanted, engine, seen.prompt_tokens)
            return name, [each["embedding"] for each in told["data"]], seen.prompt_tokens

    @router.post("/api/embed", **described(EmbedRequest, OllamaEmbedded, 404, 499, 503, 504))
    async def embed_all(request: Request) -> Response:
        began = perf_counter()
        if (found := await embedded(request, EmbedRequest, lambda body: body)) is None:
            return Response(status_code=499)
        name, vectors, tokens = found
        took = {"total_duration": nanoseconds(perf_counter() - began), "load_duration": 0, "prompt_eval_count": tokens}
        return JSONResponse({"model": name, "embeddings": vectors, **took})

    @router.post("/api/embeddings", **described(EmbeddingsRequest, OllamaEmbedding, 404, 499, 503, 504))
    async def embed_one(request: Request) -> Response:
        found = await embedded(request, EmbeddingsRequest, lambda body: EmbedRequest(input=body.prompt, options=body.options))
        return Response(status_code=499) if found is None else JSONResponse({"embedding": found[1][0]})

    @router.get("/api/tags", **described(None, OllamaTags))
    async def list_all() -> dict[str, Any]:
        return {"models": tags(service.engines)}

    @router.get("/api/ps", **described(None, OllamaRunning))
    async def ps() -> dict[str, Any]:
        return {"models": running(service.engines)}

    @router.post("/api/show", **described(ShowRequest, OllamaShown, 404))
    async def show(request: Request) -> dict[str, Any]:
        body, _ = await _body(request, service.engines)
        asked = await work(request.state.size, parse, ShowRequest, body)
        return shown(await service.engines.find(asked.model if asked.name is None else named(asked.name, service.engines)))

    @router.get("/api/version", **described(None, OllamaVersion))
    async def version() -> dict[str, Any]:
        return {"version": VERSION}

    async def refused() -> Response:
        names = " and ".join(f"'{name}'" for name in service.engines.names)
        raise InvalidRequest(f"this server has {names}: models are not pulled, made, copied or deleted over Ollama's API")

    for what, method in _CHANGES.items():
        told: dict[int | str, dict[str, Any]] = {400: {"model": OLLAMA.error, "description": REFUSALS[400]}}
        router.add_api_route(f"/api/{what}", refused, methods=[method], status_code=400, responses=told, response_model=None)

    @router.get("/", **contract(None, None, media="text/plain"))
    @router.head("/", **contract(None, None, media="text/plain"))
    async def root() -> Response:
        return PlainTextResponse("shoal is running")  # programs that look for an Ollama server request this page

    return router


def _cut(texts: Sequence[str], engine: Engine) -> list[Any]:
    """Each text's tokens, as many as fit."""
    longest = engine.longest()
    return [engine.tokenizer.encode(text, control=False)[:longest] for text in texts]
