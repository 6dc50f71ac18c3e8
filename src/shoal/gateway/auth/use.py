"""What a key was used for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Use:
    """A key's use since it was last written. last: when, in seconds since 1970."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last: float = 0.0
