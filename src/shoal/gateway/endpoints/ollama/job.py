"""From Ollama's requests to the engine's requests and the data for their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.answers.conversation import Conversation, Tools, blamed, converse
from shoal.gateway.answers.job import MANY_STOPS, Job, common
from shoal.gateway.endpoints.ollama.turns import templated
from shoal.gateway.endpoints.ollama.wire import ChatRequest, GenerateRequest, Options, Speaking
from shoal.gateway.endpoints.ollama.writer import OllamaWriter
from shoal.gateway.engine import Engine
from shoal.gateway.schema.prompts import tokenised
from shoal.gateway.schema.sampling import fitting
from shoal.gateway.schema.variables import template_variables
from shoal.gateway.schema.wire import parse
from shoal.request import MAX_ALTERNATIVES


class OllamaJob(Job, frozen=True, tag="ollama"):
    model: str
    """The client's name for it."""
    chat: bool
    """Whether it is a chat; otherwise it is about one text."""
    context: bool = False
    """Whether the answer ends with all tokens, from which another may continue."""
    logprobs: bool = False

    def writer(self, engine: Engine) -> OllamaWriter:
        return OllamaWriter(engine, self)


def chat_job(body: ChatRequest, engine: Engine, chosen: str | None, model: str) -> OllamaJob:
    """Raises InvalidRequest, NotReady."""
    variables = template_variables(engine.tokenizer, body.asked_effort(), None)
    asked = converse(engine, templated(body.messages), body.asked_tools(), body.answer(), variables)
    return OllamaJob(**_fields(body, engine, chosen, asked), model=model, chat=True, logprobs=bool(body.logprobs))


def generate_job(body: GenerateRequest, engine: Engine, chosen: str | None, model: str) -> OllamaJob:
    """Raises InvalidRequest, NotReady."""
    asked = _raw(body, engine) if body.raw else _turn(body, engine)
    fields = _fields(body, engine, chosen, asked)
    return OllamaJob(**fields, model=model, chat=False, context=not body.raw, logprobs=bool(body.logprobs))


def _fields(body: Speaking, engine: Engine, chosen: str | None, asked: Conversation) -> dict[str, Any]:
    if body.think and engine.tokenizer.reasoning_format is None:
        raise InvalidRequest(f"'{engine.name}' does not support thinking", "think")
    if not 0 <= (body.top_logprobs or 0) <= MAX_ALTERNATIVES:
        raise InvalidRequest(f"top_logprobs must lie in [0, {MAX_ALTERNATIVES}], not {body.top_logprobs}", "top_logprobs")
    options = options_of(body.options)
    most = options.most()
    fields = common(
        options.sampled(body.stream is not False),
        engine,
        [asked.prompt],
        prefix="ollama-",
        max_tokens=None if most is None else fitting(most, len(asked.prompt), engine.longest()),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        chosen=chosen,
        grammar=asked.grammar,
        most_stops=MANY_STOPS,
    )
    return {**fields, "format": asked.format, "markers": asked.markers}


def options_of(given: dict[str, Any] | None) -> Options:
    """Raises InvalidRequest."""
    try:
        return parse(Options, given or {})
    except InvalidRequest as error:
        raise InvalidRequest(f"options: {error}", f"options.{error.param}", error.code) from None


def _raw(body: GenerateRequest, engine: Engine) -> Conversation:
    if body.system or body.context:
        raise InvalidRequest("a raw prompt is the whole prompt: it cannot be combined with system or context", "raw")
    (prompt,) = tokenised(body.prompt or "", engine, "prompt", 1, control=True)
    said = body.answer()
    return Conversation(prompt, "" if said is None else said.grammar)


def _turn(body: GenerateRequest, engine: Engine) -> Conversation:
    """One turn of the template, after the earlier ones."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    variables = template_variables(engine.tokenizer, body.asked_effort(), None)
    with blamed("prompt"):
        asked = converse(engine, [*system, {"role": "user", "content": body.prompt or ""}], Tools([]), body.answer(), variables)
    before = body.context or []
    if any(not 0 <= token < engine.vocabulary for token in before):
        raise InvalidRequest(f"context has a token outside the vocabulary of {engine.vocabulary}", "context")
    prompt = [*before, *_unbegun(asked.prompt, engine)] if before else asked.prompt
    return Conversation(prompt, asked.grammar, asked.format, asked.markers)


def _unbegun(prompt: Sequence[int], engine: Engine) -> Sequence[int]:
    """Without the token that begins a text."""
    begin = engine.tokenizer.special.get(engine.tokenizer.named.get("bos_token", ""))
    return prompt[1:] if begin is not None and prompt[:1] == [begin] else prompt
