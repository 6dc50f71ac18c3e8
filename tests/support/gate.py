"""Applications with keys, and requests with one."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from shoal.config import ApiSettings
from shoal.gateway.app import create_app
from shoal.gateway.auth.key_store import KeyStore
from shoal.gateway.service import Service
from tests.support.app import alone
from tests.support.engine import FakeEngine
from tests.support.http import HI

ASK = {"messages": HI}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def app_of(store: KeyStore, engine: FakeEngine | None = None, **settings: Any) -> FastAPI:
    return create_app(alone(engine or FakeEngine()), ApiSettings(data=str(store.path.parent), **settings))


def service_of(app: FastAPI) -> Service:
    return app.state.service
