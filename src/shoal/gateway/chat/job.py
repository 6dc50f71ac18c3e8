"""From a chat request to the engine's, and what its answer needs."""

from __future__ import annotations

from shoal.errors import InvalidRequest
from shoal.gateway.chat.wire import ChatRequest
from shoal.gateway.chat.writer import ChatWriter
from shoal.gateway.engine import Engine
from shoal.gateway.job import Job, check_length, common


class ChatJob(Job, frozen=True, tag="chat"):
    logprobs: bool = False

    def writer(self, engine: Engine) -> ChatWriter:
        return ChatWriter(engine, self.id, self.created, self.choices, self.logprobs, self.include_usage)


def chat_job(body: ChatRequest, engine: Engine, chosen: str | None = None) -> ChatJob:
    """chosen: the answer's id. Raises InvalidRequest, NotReady."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("give max_completion_tokens or max_tokens, not both", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs")
    messages = [message.plain() for message in body.messages]
    check_length("".join(message["content"] for message in messages), engine, "messages")
    prompt = engine.tokenizer.encode_chat(messages)
    fields = common(
        body,
        engine,
        [prompt],
        prefix="chatcmpl-",
        max_tokens=body.max_completion_tokens if body.max_tokens is None else body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        chosen=chosen,
    )
    return ChatJob(**fields, logprobs=bool(body.logprobs))
