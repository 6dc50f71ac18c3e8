"""To whom what is kept belongs."""

from __future__ import annotations

from fastapi import Request


def owner(request: Request) -> str:
    """The key that a request came with, as whoever checked it noted; '' where the API has no keys."""
    return str(getattr(request.state, "key", ""))
