"""/tokenize, /detokenize and /tokenizer_info, as in vLLM: a text's tokens, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import rendered
from shoal.gateway.endpoints.chat.wire import AnyTool, ChatRequest, Message
from shoal.gateway.engine import Engine
from shoal.gateway.http.work import work
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.variables import template_variables
from shoal.gateway.schema.wire import Shape, Wire, parse
from shoal.gateway.service import Service, json_body

MAX_TEXT = 1 << 20
"""Most characters of a text, or tokens, in one request: they take a second."""


class TokenizeRequest(Wire):
    """Either a text or a conversation."""

    inert: ClassVar[dict[str, tuple[Any, ...]]] = {
        "continue_final_message": (None, False),
        "chat_template": (None,),
        "mm_processor_kwargs": (None, {}),
    }

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    tools: list[AnyTool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    """Begin with the model's BOS if it wants one. Default: true for a text, false for a conversation, whose template adds it."""
    parse_special: bool = True
    """Recognise control tokens in a text, as /v1/completions does. In a conversation only its template's are recognised."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]


B = TypeVar("B", TokenizeRequest, DetokenizeRequest)


class TokenizeAnswer(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(Shape):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class DetokenizeAnswer(Shape):
    prompt: str


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    def encoded(body: TokenizeRequest, engine: Engine) -> dict[str, Any]:
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("give either prompt or messages", "prompt")
        if body.tools and body.messages is None:
            raise InvalidRequest("tools can be given only with messages", "tools")
        if body.messages is None:
            text, bos = body.prompt or "", body.add_special_tokens is not False
        else:
            chat = ChatRequest(messages=body.messages, tools=body.tools)
            variables = template_variables(engine.tokenizer, None, body.chat_template_kwargs)
            text = rendered(engine.tokenizer, chat.templated(), chat.asked_tools(), body.add_generation_prompt, variables)
            bos = bool(body.add_special_tokens)
        if len(text) > MAX_TEXT:
            param = "prompt" if body.messages is None else "messages"
            raise InvalidRequest(f"the text has {len(text)} characters; at most {MAX_TEXT} are allowed: send it in parts", param)
        if body.messages is None:
            tokens = engine.tokenizer.encode(text, bos, body.parse_special)
        else:
            tokens = engine.tokenizer.encode_marked(text, bos)
        pieces = [engine.tokenizer.token_bytes(t).decode(errors="replace") for t in tokens] if body.return_token_strs else None
        return {"count": len(tokens), "max_model_len": engine.longest(), "tokens": tokens, "token_strs": pieces}

    def decoded(body: DetokenizeRequest, engine: Engine) -> dict[str, Any]:
        if len(body.tokens) > MAX_TEXT:
            raise InvalidRequest(f"there are {len(body.tokens)} tokens; at most {MAX_TEXT} are allowed: send them in parts", "tokens")
        if any(not 0 <= token < engine.vocabulary for token in body.tokens):
            raise InvalidRequest(f"tokens has a token outside the vocabulary of {engine.vocabulary}", "tokens")
        return {"prompt": engine.tokenizer.decode(body.tokens, special=True)}

    async def answered(request: Request, kind: type[B], do: Callable[[B, Engine], dict[str, Any]]) -> Response:
        body = await json_body(request)
        engine = await service.engine(body)
        written = await work(request.state.size, lambda: msgspec.json.encode(do(parse(kind, body), engine)))
        return Response(written, media_type="application/json")

    described = contract(TokenizeRequest, TokenizeAnswer, 404, 503)

    @router.post("/tokenize", **described)
    @router.post("/v1/tokenize", **described)
    async def tokenize(request: Request) -> Response:
        return await answered(request, TokenizeRequest, encoded)

    @router.get("/tokenizer_info", **contract(None, TokenizerInfo, 404, 503))
    @router.get("/v1/tokenizer_info", **contract(None, TokenizerInfo, 404, 503))
    async def info(model: str | None = None) -> dict[str, Any]:
        tokenizer = (await service.engines.find(model)).tokenizer
        return {
            "tokenizer_class": "shoal",
            "bos_token": tokenizer.named.get("bos_token"),
            "eos_token": tokenizer.named.get("eos_token"),
            "pad_token": None,
            "chat_template": None if tokenizer.template is None else tokenizer.template.source,
        }

    described = contract(DetokenizeRequest, DetokenizeAnswer, 404, 503)

    @router.post("/detokenize", **described)
    @router.post("/v1/detokenize", **described)
    async def detokenize(request: Request) -> Response:
        return await answered(request, DetokenizeRequest, decoded)

    return router
