"""What the span of a request says about its answer, as in OpenTelemetry's conventions for generative models: never any text."""

from __future__ import annotations

from shoal.errors import UserError
from shoal.gateway.answers.answer import Answer
from shoal.gateway.engine import TakenOver
from shoal.gateway.http.request_span import RequestSpan
from shoal.gateway.http.reuse import REUSE


def describe(span: RequestSpan, answer: Answer) -> None:
    """Adds what was asked now, and what was answered when the request is over."""
    first, model = answer.job.requests[0], answer.engine.name
    sampling, attributes = first.sampling, span.attributes
    attributes |= {
        "gen_ai.provider.name": "shoal",
        "gen_ai.request.model": attributes.get("gen_ai.request.model", model),
        "gen_ai.response.model": model,
        "gen_ai.response.id": answer.job.id,
        "gen_ai.request.max_tokens": first.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.stream": answer.job.stream,
        "gen_ai.usage.input_tokens": answer.job.prompt_tokens,
        "shoal.priority": first.priority.name.lower(),
    }
    if (reuse := REUSE.get()) is not None and reuse.found:
        attributes["shoal.response_cache"] = reuse.found
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    if answer.job.choices > 1:
        attributes["gen_ai.request.choice.count"] = answer.job.choices
    span.outcome = lambda: _answered(span, answer)


def _answered(span: RequestSpan, answer: Answer) -> None:
    usage, attributes = answer.usage, span.attributes
    reasons = {piece.choice: str(piece.finish) for piece in answer.pieces if piece.finish is not None}
    attributes |= {
        "gen_ai.usage.output_tokens": usage.completion,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
        "gen_ai.response.finish_reasons": [reasons[choice] for choice in sorted(reasons)],
    }
    if answer.pieces:
        attributes["gen_ai.response.time_to_first_chunk"] = usage.waited
    if usage.reasoning:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning
    if usage.degraded:
        attributes["shoal.degraded_tokens"] = usage.degraded
    if isinstance(answer.error, TakenOver):
        attributes["shoal.taken_over"] = True
    elif answer.error is not None and span.error is None:
        span.failed(type(answer.error).__name__, "" if isinstance(answer.error, UserError) else str(answer.error))
