"""/operator/keys: who may use the API, and how much."""

from __future__ import annotations

import asyncio
from time import time

from fastapi import APIRouter, Request
from fastapi.responses import Response

from shoal.errors import ConfigError, Conflict, InvalidRequest, UnknownObject
from shoal.gateway.auth.caller import CALLER
from shoal.gateway.auth.key import ApiKey, KeyLimits, KeyRole
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.endpoints.operator.wire import KeyBody, KeyList, KeyView
from shoal.gateway.schema.contract import contract
from shoal.gateway.schema.shaped import shaped, told
from shoal.gateway.schema.wire import parse
from shoal.gateway.service import Service, json_body
from shoal.request import Priority


def view(key: ApiKey, now: float, token: str | None = None) -> KeyView:
    return KeyView(
        key.id,
        key.name,
        key.role,
        key.state(now),
        key.created,
        key.expires,
        key.last_used,
        key.requests,
        key.prompt_tokens,
        key.completion_tokens,
        key.limits.requests or None,
        key.limits.tokens or None,
        key.limits.concurrency or None,
        key.priority.name.lower(),
        token,
    )


def routes(service: Service) -> APIRouter:
    router, keyring = APIRouter(), service.keyring

    @router.get("/operator/keys", **contract(None, shaped(KeyList), 403))
    async def keys() -> Response:
        CALLER.get().check_operator()
        now = time()
        return told(KeyList([view(key, now) for key in await asyncio.to_thread(keyring.all)]))

    @router.post("/operator/keys", **contract(KeyBody, shaped(KeyView), 403, 409))
    async def create(request: Request) -> Response:
        CALLER.get().check_operator()
        body = parse(KeyBody, await json_body(request))
        made = await asyncio.to_thread(_made, keyring, body)
        return told(made)

    @router.delete("/operator/keys/{id}", **contract(None, shaped(KeyView), 403, 404))
    async def revoke(id: str) -> Response:
        CALLER.get().check_operator()
        return told(await asyncio.to_thread(_revoked, keyring, id))

    return router


def _made(keyring: Keyring, body: KeyBody) -> KeyView:
    """Raises InvalidRequest, Conflict."""
    now = time()
    if body.expires is not None and body.expires <= now:
        raise InvalidRequest("expires is in the past", "expires")
    if not body.name.isprintable():
        raise InvalidRequest("a key's name has printable characters only", "name")
    limits = KeyLimits(body.rpm, body.tokens_per_minute, body.concurrency)
    try:
        key, token = keyring.create(body.name, limits, body.expires, Priority[body.priority.upper()], KeyRole(body.role))
    except ConfigError as error:
        raise Conflict(str(error), "name") from error
    return view(key, now, token)


def _revoked(keyring: Keyring, id: str) -> KeyView:
    """Raises UnknownObject."""
    if not any(key.id == id and key.revoked is None for key in keyring.all()):
        raise UnknownObject("key", id)
    return view(keyring.revoke(id), time())
