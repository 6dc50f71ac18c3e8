"""Applications whose servers have the engines of a test."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from shoal.gateway.app import create_app
from shoal.gateway.engines import ServedEngines


def alone(engine: Any) -> ServedEngines:
    """The only engine of its server, which counts for the server, too."""
    return ServedEngines([engine], engine)


def app_of(engine: Any, *others: Any, **more: Any) -> FastAPI:
    """The application of one engine. others, more: the further arguments of create_app."""
    return create_app(alone(engine), *others, **more)
