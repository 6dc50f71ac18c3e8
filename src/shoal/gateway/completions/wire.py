"""The body of a completion request."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.gateway.wire import Sampled


class CompletionRequest(Sampled):
    inert: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": (None, ""), "echo": (None, False), "best_of": (None, 1)}

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
