"""From a chat request to the engine's requests and the data for its answer."""

from __future__ import annotations

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import converse
from shoal.gateway.answers.job import Job, common
from shoal.gateway.endpoints.chat.wire import ChatRequest
from shoal.gateway.endpoints.chat.writer import ChatWriter
from shoal.gateway.engine import Engine
from shoal.gateway.schema.variables import template_variables
from shoal.request import MAX_ALTERNATIVES


class ChatJob(Job, frozen=True, tag="chat"):
    logprobs: bool = False
    custom: tuple[str, ...] = ()
    """Tools that are called with text."""

    def writer(self, engine: Engine) -> ChatWriter:
        return ChatWriter(engine, self)


def chat_job(body: ChatRequest, engine: Engine, chosen: str | None = None) -> ChatJob:
    """chosen: the answer's id. Raises InvalidRequest, NotReady."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("give max_completion_tokens or max_tokens, not both", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    if not 0 <= (body.top_logprobs or 0) <= MAX_ALTERNATIVES:
        raise InvalidRequest(f"top_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {body.top_logprobs}", "top_logprobs")
    answer = None if body.response_format is None else body.response_format.answer()
    variables = template_variables(engine.tokenizer, body.reasoning_effort, body.chat_template_kwargs)
    tools = body.asked_tools()
    asked = converse(engine, body.templated(), tools, answer, variables)
    fields = common(
        body,
        engine,
        [asked.prompt],
        prefix="chatcmpl-",
        max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
        limited_by="max_completion_tokens" if body.max_tokens is None else "max_tokens",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        chosen=chosen,
        grammar=asked.grammar,
    )
    return ChatJob(**fields, logprobs=bool(body.logprobs), format=asked.format, custom=tools.custom, markers=asked.markers)
