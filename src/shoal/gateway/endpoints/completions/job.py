"""From a completion request to the engine's requests and the data for its answer."""

from __future__ import annotations

from shoal.errors import InvalidRequest
from shoal.gateway.answers.job import Job, common
from shoal.gateway.endpoints.completions.wire import CompletionRequest
from shoal.gateway.endpoints.completions.writer import CompletionWriter
from shoal.gateway.engine import Engine
from shoal.gateway.schema.prompts import texts, tokenised
from shoal.request import MAX_CHOICES

_MAX_PROMPTS = 64


class CompletionJob(Job, frozen=True, tag="completion"):
    logprobs: bool = False
    kept: int = 1
    """How many of each prompt's choices are returned, the likeliest ones."""
    echo: tuple[str, ...] = ()
    """The prompts' texts, if they precede the answers."""

    def writer(self, engine: Engine) -> CompletionWriter:
        return CompletionWriter(engine, self)


def _choices(body: CompletionRequest) -> tuple[int, int]:
    """How many choices each prompt gets, and of how many they are the best. Raises InvalidRequest."""
    n = 1 if body.n is None else body.n
    best_of = n if body.best_of is None else body.best_of
    for name, value in (("n", n), ("best_of", best_of)):
        if not 1 <= value <= MAX_CHOICES:
            raise InvalidRequest(f"{name} must lie in [1, {MAX_CHOICES}], not {value}", name)
    if best_of < n:
        raise InvalidRequest(f"best_of is {best_of}; it cannot be less than n, which is {n}", "best_of")
    if best_of > n and body.stream:
        raise InvalidRequest("best_of cannot be streamed: the best choices are known only at the end", "best_of")
    return n, best_of


def completion_job(body: CompletionRequest, engine: Engine, chosen: str | None = None) -> CompletionJob:
    """chosen: the answer's id. max_tokens defaults to 16, as in OpenAI's API. Raises InvalidRequest, NotReady."""
    prompts = tokenised(body.prompt, engine, "prompt", _MAX_PROMPTS, control=True)
    max_tokens = 16 if body.max_tokens is None else body.max_tokens
    n, best_of = _choices(body)
    if max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens can be 0 only with echo", "max_tokens")
    fields = common(
        body.model_copy(update={"n": best_of}),
        engine,
        prompts,
        prefix="cmpl-",
        max_tokens=max_tokens,
        logprobs=0 if body.logprobs is None and best_of > n else body.logprobs,
        chosen=chosen,
        prompt_logprobs=(body.logprobs or 0) if body.echo and (body.logprobs is not None or max_tokens == 0) else None,
    )
    return CompletionJob(**fields, logprobs=body.logprobs is not None, kept=n, echo=texts(body.prompt, engine) if body.echo else ())
