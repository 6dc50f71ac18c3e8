"""Converts the sampling fields of a body to SamplingParams."""

from __future__ import annotations

import secrets
from typing import Any

from shoal.errors import InvalidRequest
from shoal.gateway.schema.wire import SampledBody
from shoal.request import SamplingParams

MAX_BIASES = 1024
"""Most tokens in logit_bias."""


def limit(wanted: int | None, prompt: int, longest: int, param: str) -> int:
    """Tokens that a choice may have; None: as many as fit after the prompt. A prompt that is too long is not checked here.

    param: the field of `wanted`

    Raises InvalidRequest.
    """
    if wanted is None:
        return max(longest - prompt, 1)
    if wanted < 1:
        raise InvalidRequest(f"{param} must be at least 1, not {wanted}", param)
    if prompt < longest < prompt + wanted:
        message = f"the prompt's {prompt} tokens and {param} {wanted} make {prompt + wanted}; at most {longest} fit"
        raise InvalidRequest(message, param, "context_length_exceeded")
    return min(wanted, longest)


def fitting(wanted: int, prompt: int, longest: int) -> int:
    """Tokens of an answer if the API treats the limit as a wish: no more than fit after the prompt."""
    return min(wanted, max(longest - prompt, 1))


def sampling_params(body: SampledBody, logprobs: int | None, grammar: str, vocabulary: int) -> SamplingParams:
    """Draws a random seed if none is given. Raises InvalidRequest, naming the field."""

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    if len(body.logit_bias or {}) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias may have at most {MAX_BIASES} tokens, not {len(body.logit_bias or {})}", "logit_bias")
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise InvalidRequest("logit_bias must map token ids to numbers", "logit_bias") from None
    params = SamplingParams(
        temperature=given(body.temperature, 1.0),
        top_k=given(body.top_k, 0),
        top_p=given(body.top_p, 1.0),
        min_p=given(body.min_p, 0.0),
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=bias,
        seed=secrets.randbits(63) if body.seed is None else body.seed % 2**64,
        logprobs=logprobs,
        grammar=grammar,
    )
    params.check(vocabulary)
    return params
