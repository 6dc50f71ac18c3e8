"""A client of Redis that gives up at once, and its failures in words."""

from __future__ import annotations

from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from shoal.discovery.redis_url import RedisUrl
from shoal.errors import ClusterError, ConfigError, ShoalError

_ANSWER = 5.0  # seconds for an answer, and for a connection


def client_of(url: RedisUrl) -> Redis:
    """Nothing is sent yet. Whoever uses it retries by himself."""
    client: Redis = cast(Any, Redis).from_url(
        url.url,
        socket_timeout=_ANSWER,
        socket_connect_timeout=_ANSWER,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    return client


def failure(url: RedisUrl, error: BaseException) -> ShoalError:
    if isinstance(error, AuthenticationError):
        return ConfigError(f"{url.shown} refuses the password ({url.told(error)}); write redis://[USER]:PASSWORD@HOST:PORT/DB")
    return ClusterError(f"no Redis answers at {url.shown} ({url.told(error)}); is it running there, and is the port open?")
