"""Which servers a request has passed through: each adds its id to the header Via (RFC 9110, section 7.6.3)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from shoal.errors import Looped

MOST = 16
"""Servers that a request may pass through."""

_ID = re.compile(r"\bshoal-[0-9a-f]{12}\b")


def server_id() -> str:
    """A new one."""
    return f"shoal-{secrets.token_hex(6)}"


def passed(via: Sequence[str]) -> list[str]:
    """Ids of the servers in all Via headers of a request, the first that it reached first."""
    return [id for value in via for id in _ID.findall(value)]


def extended(via: Sequence[str], own: str) -> str:
    """The Via header of the request that goes on. Raises Looped if it was here before, or has come too far."""
    before = passed(via)
    if own in before:
        raise Looped("this request has come back to a server that sent it on: two servers are upstreams of each other")
    if len(before) >= MOST:
        raise Looped(f"this request has passed through {len(before)} servers, which are upstreams of one another")
    return ", ".join([*via, f"1.1 {own}"])
