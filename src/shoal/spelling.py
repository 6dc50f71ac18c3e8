"""What a misspelt word may have been."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """What a misspelt word may have been, to follow it: " (did you mean 'b'?)"; '' where nothing is near."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return f" (did you mean '{lower[close[0]]}'?)" if close else ""
