"""Tokens and their log-probabilities, in the form of OpenAI's chat and responses APIs and Ollama's API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.gateway.engine import ChatTokenizer
from shoal.request import TokenChunk


def scores(chunks: Sequence[TokenChunk], tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Of each token, with its alternatives."""

    def token(id: int, logprob: float | None) -> dict[str, Any]:
        raw = tokenizer.token_bytes(id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}

    return [
        {**token(chunk.token, chunk.logprob), "top_logprobs": [token(a.token, a.logprob) for a in chunk.alternatives]}
        for chunk in chunks
        if chunk.token is not None
    ]
