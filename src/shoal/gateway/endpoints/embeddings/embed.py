"""Texts to vectors: the mean of the model's last hidden states, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import InvalidRequest
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.endpoints.embeddings.wire import EmbeddingRequest
from shoal.gateway.engine import Engine
from shoal.gateway.schema.prompts import tokenised
from shoal.request import Priority, Request, RequestId, SamplingParams
from shoal.trace_context import TRACE

_MAX_INPUTS = 2048
_AT_ONCE = 16  # so that a large batch leaves room in the queue for others


def inputs(body: EmbeddingRequest, engine: Engine) -> list[list[int]]:
    """Each input's tokens. Raises InvalidRequest."""
    prompts = tokenised(body.input, engine, "input", _MAX_INPUTS, control=False)
    longest = engine.longest()
    for i, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= longest:
            raise InvalidRequest(f"input {i} has {len(prompt)} tokens; it must have between 1 and {longest}", "input")
    return prompts


async def embed(prompts: Sequence[list[int]], engine: Engine) -> list[NDArray[np.float32]]:
    """A vector of length 1 for each prompt. Raises what the engine raises; then, and when cancelled, nothing is left running."""
    room, id = asyncio.Semaphore(_AT_ONCE), "embd-" + secrets.token_hex(12)

    async def one(i: int, prompt: list[int]) -> NDArray[np.float32]:
        async with room:
            name, caller = f"{id}-{i}", CALLER.get()
            request = Request(
                RequestId(name), prompt, 0, SamplingParams(), priority=max(Priority.NORMAL, caller.priority), embed=True, trace=TRACE.get()
            )
            (stream,) = await engine.begin(name, b"", [request], False)
            caller.spend(prompt=len(prompt))
            try:
                found = b"".join([chunk.embedding async for chunk in stream])
            finally:
                stream.close()
                engine.forget(name)
            return _unit(np.frombuffer(found, "<f4"))

    tasks = [asyncio.ensure_future(one(i, prompt)) for i, prompt in enumerate(prompts)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / np.float32(length)).astype(np.float32) if length else vector


def written(vectors: Sequence[NDArray[np.float32]], body: EmbeddingRequest, engine: Engine, tokens: int) -> dict[str, Any]:
    """The answer. Raises InvalidRequest for a number of dimensions that the model does not have."""
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise InvalidRequest(
            f"this model's embeddings have {len(vectors[0])} dimensions, and none can be left out", "dimensions", "unsupported_value"
        )
    encode = _base64 if body.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)],
        "model": engine.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _floats(vector: NDArray[np.float32]) -> list[float]:
    return vector.tolist()
