"""A time in the form of Anthropic's and Ollama's APIs."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(seconds: float) -> str:
    """seconds: since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
