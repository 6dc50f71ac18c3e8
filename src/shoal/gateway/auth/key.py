"""An API key: its limits and its text form."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from enum import StrEnum
from typing import NewType

import msgspec

from shoal.request import Priority

KeyId = NewType("KeyId", str)
"""A key's public id, in listings and as the owner of answers; empty if the API requires no key."""

_TOKEN = re.compile(r"sk-shoal-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


class KeyLimits(msgspec.Struct, frozen=True):
    """0: no limit."""

    requests: int = 0
    """Per minute."""
    tokens: int = 0
    """Per minute, of prompts and answers."""
    concurrency: int = 0
    """Requests at once."""


UNLIMITED = KeyLimits()


class KeyRole(StrEnum):
    USER = "user"
    """Asks the model, and sees the cluster."""
    OPERATOR = "operator"
    """Also manages it, and sees everybody's requests."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since 1970."""

    id: KeyId
    name: str
    digest: bytes
    """SHA-256 of the secret. It has 256 random bits, so there is nothing to guess and a slow hash would protect nothing."""
    created: int
    expires: int | None = None
    revoked: int | None = None
    last_used: int | None = None
    limits: KeyLimits = UNLIMITED
    priority: Priority = Priority.URGENT
    """The highest class that its requests may have; if they ask for a higher one, they get this one."""
    role: KeyRole = KeyRole.USER
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def state(self, now: float) -> str:
        """'good', 'revoked' or 'expired'."""
        return "revoked" if self.revoked is not None else "good" if self.good(now) else "expired"

    def good(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)

    def opened_by(self, secret: bytes) -> bool:
        return hmac.compare_digest(hashlib.sha256(secret).digest(), self.digest)


def mint() -> tuple[KeyId, str, bytes]:
    """A new key's id, the token that its holder sends, and the digest that is kept."""
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return KeyId(id), f"sk-shoal-{id}-{secret}", hashlib.sha256(secret.encode()).digest()


def parted(token: str) -> tuple[KeyId, bytes] | None:
    """A token's id and secret; None if it is not a token."""
    match = _TOKEN.fullmatch(token)
    return None if match is None else (KeyId(match[1]), match[2].encode())
