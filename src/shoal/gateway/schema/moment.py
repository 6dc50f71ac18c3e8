"""A time as Anthropic's and Ollama's APIs write it."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(seconds: float) -> str:
    """seconds: since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
