"""Hints for misspelt words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """A hint to append to a misspelt word: " (did you mean 'b'?)"; '' if no known word is close."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return f" (did you mean '{lower[close[0]]}'?)" if close else ""
