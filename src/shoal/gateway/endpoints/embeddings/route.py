"""The embeddings endpoint."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from shoal.gateway.endpoints.embeddings.answer import EmbeddingAnswer
from shoal.gateway.endpoints.embeddings.embed import embed, inputs, written
from shoal.gateway.endpoints.embeddings.wire import EmbeddingRequest
from shoal.gateway.http.request_span import SPAN, part
from shoal.gateway.http.work import work
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Service, json_body, unless_left


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings", **contract(EmbeddingRequest, EmbeddingAnswer, 404, 499, 502, 504, 508))
    async def embeddings(request: Request) -> Response:
        with service.observed("embeddings") as seen:
            raw = await json_body(request)
            engine = await service.engine(raw, seen)

            def prepared() -> tuple[EmbeddingRequest, list[list[int]]]:
                body = parse(EmbeddingRequest, raw)
                return body, inputs(body, engine)

            with part("prepare"):
                body, prompts = await work(request.state.size, prepared)
            seen.prompt_tokens = sum(map(len, prompts))
            if (span := SPAN.get()) is not None:
                asked = span.attributes.get("gen_ai.request.model", engine.name)
                span.attributes |= {"gen_ai.request.model": asked, "gen_ai.usage.input_tokens": seen.prompt_tokens}
            vectors = await unless_left(request, embed(prompts, engine))
            if vectors is None:
                return Response(status_code=499)
            return JSONResponse(await work(request.state.size, written, vectors, body, engine, seen.prompt_tokens))

    return router
