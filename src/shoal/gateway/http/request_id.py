"""The ids of requests and of what they create."""

from __future__ import annotations

import re
import secrets

from shoal.errors import InvalidRequest

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def chosen_id(header: str | None) -> str | None:
    """The id that a client chose in X-Request-Id. Raises InvalidRequest."""
    if header is not None and ID.fullmatch(header) is None:
        raise InvalidRequest(
            "X-Request-Id has 1 to 128 letters, digits, dots, colons, dashes and underscores, and begins with a letter or a digit",
            "X-Request-Id",
        )
    return header


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)
