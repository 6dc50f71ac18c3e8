"""GET /v1/models of another server: which models it has."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import httpx2

from shoal.gateway.upstream.reading import read_whole
from shoal.gateway.upstream.upstream import Upstream
from shoal.observed.models import UpstreamModel

_PATH = "/v1/models"
_PATIENCE = httpx2.Timeout(5.0)
_LONGEST = 15.0
"""Seconds until it has said all, however it says that."""
_LARGEST = 4 << 20
_LONGEST_NAME = 512


class Unlisted(Exception):
    """It did not say which models it has; the message says why. sure: it cannot be that it is only slow."""

    def __init__(self, message: str, sure: bool = True) -> None:
        super().__init__(message)
        self.sure = sure


async def listed(client: httpx2.AsyncClient, upstream: Upstream, own: str) -> dict[str, UpstreamModel]:
    """Its models by name, without those that it has from this server, whose id is `own`. Raises Unlisted."""
    try:
        async with asyncio.timeout(_LONGEST):
            return await _listed(client, upstream, own)
    except TimeoutError:
        raise Unlisted(f"it does not say all within {_LONGEST:g} s", sure=False) from None


async def _listed(client: httpx2.AsyncClient, upstream: Upstream, own: str) -> dict[str, UpstreamModel]:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Via": f"1.1 {own}", **upstream.credentials(_PATH)}
    try:
        async with client.stream("GET", upstream.at(_PATH), headers=headers, timeout=_PATIENCE) as answer:
            raw = await read_whole(answer, _LARGEST)
    except httpx2.TimeoutException as error:
        slow = not isinstance(error, httpx2.ConnectTimeout)
        raise Unlisted(f"it does not answer within {_PATIENCE.read:g} s", sure=not slow) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unlisted(f"it cannot be reached: {error or type(error).__name__}") from None
    if answer.status_code in (401, 402, 403):
        raise Unlisted(f"it answers {answer.status_code} and wants another key, or its account has no credit: see --upstream-key-file")
    if answer.status_code != 200:
        raise Unlisted(f"it answers {answer.status_code} when it is asked for its models at {upstream.at(_PATH)}")
    if (models := read_models(raw)) is None:
        raise Unlisted(f"what it answers at {upstream.at(_PATH)} is no list of models")
    return {model.name: model for model in models if own not in model.via}


def read_models(raw: bytes) -> list[UpstreamModel] | None:
    """The models in the list; None if it is none."""
    try:
        data: Any = json.loads(raw)["data"]
        return (
            [_model(cast("dict[str, Any]", card)) for card in cast("list[Any]", data) if _is_card(card)] if isinstance(data, list) else None
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_card(card: Any) -> bool:
    return isinstance(card, dict) and isinstance(id := cast("dict[str, Any]", card).get("id"), str) and 0 < len(id) <= _LONGEST_NAME


def _model(card: dict[str, Any]) -> UpstreamModel:
    longest, via = card.get("max_model_len"), card.get("via")
    ids = [str(id)[:64] for id in cast("list[Any]", via)[:64]] if isinstance(via, list) else []
    return UpstreamModel(card["id"], longest if type(longest) is int and longest > 0 else 0, ids)
