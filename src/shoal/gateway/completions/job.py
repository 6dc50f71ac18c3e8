"""From a completion request to the engine's, and what its answer needs."""

from __future__ import annotations

from typing import Any, cast

from shoal.errors import InvalidRequest
from shoal.gateway.completions.wire import CompletionRequest
from shoal.gateway.completions.writer import CompletionWriter
from shoal.gateway.engine import Engine
from shoal.gateway.job import Job, check_length, common

_MAX_PROMPTS = 64


class CompletionJob(Job, frozen=True, tag="completion"):
    logprobs: bool = False

    def writer(self, engine: Engine) -> CompletionWriter:
        return CompletionWriter(engine, self.id, self.created, self.choices, self.logprobs, self.include_usage)


def _encoded(text: str, engine: Engine) -> list[int]:
    check_length(text, engine, "prompt")
    return engine.tokenizer.encode(text)


def completion_job(body: CompletionRequest, engine: Engine, chosen: str | None = None) -> CompletionJob:
    """chosen: the answer's id. Without max_tokens it is 16, as OpenAI's API has it. Raises InvalidRequest, NotReady."""
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        prompts = [_encoded(prompt, engine)]
    elif prompt and isinstance(prompt[0], int):
        prompts = [cast("list[int]", prompt)]
    else:
        many = cast("list[str | list[int]]", prompt)
        prompts = [_encoded(p, engine) if isinstance(p, str) else p for p in many]
    if not 1 <= len(prompts) <= _MAX_PROMPTS:
        raise InvalidRequest(f"between 1 and {_MAX_PROMPTS} prompts are possible, not {len(prompts)}", "prompt")
    for tokens in prompts:
        if any(not 0 <= token < engine.vocabulary for token in tokens):
            raise InvalidRequest(f"the prompt has a token outside the vocabulary of {engine.vocabulary}", "prompt")
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    fields = common(body, engine, prompts, prefix="cmpl-", max_tokens=max_tokens, logprobs=body.logprobs, chosen=chosen)
    return CompletionJob(**fields, logprobs=body.logprobs is not None)
