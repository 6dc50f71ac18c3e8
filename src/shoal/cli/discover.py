"""Announces a head, and finds one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from shoal import __version__
from shoal.cli.show import line
from shoal.config import HeadSettings, NodeSettings
from shoal.discovery.advert import Advert, check_name, words
from shoal.discovery.base import Registry
from shoal.discovery.registry import open_registry
from shoal.errors import ClusterError

if TYPE_CHECKING:
    from shoal.node.head import Head

_PATIENCE = 5.0  # seconds within which a head must answer
_EVERY = 2.0  # seconds between checks for changes


def _advert(head: Head, pairing_port: int) -> Advert:
    settings = head.settings
    return Advert(
        settings.cluster,
        settings.host,
        head.control_port,
        pairing_port,
        words(", ".join(head.engines)),
        words(head.state or "serving"),
        len(head.members),
        __version__,
        settings.protected,
    )


def check_announcing(settings: HeadSettings) -> None:
    """Called before fetching a model, in case its head could not be announced. Raises ConfigError."""
    check_name(settings.cluster)
    open_registry(settings.discovery)


@contextlib.asynccontextmanager
async def announced(head: Head, pairing_port: int) -> AsyncGenerator[None]:
    """Lets nodes find the head while the context is open. If it cannot be announced, it says so and serves anyway. Raises ConfigError."""
    registry = open_registry(head.settings.discovery)
    telling: asyncio.Task[None] | None = None
    try:
        registry.show(head.topology)
        try:
            await registry.announce(_advert(head, pairing_port))
            telling = asyncio.get_running_loop().create_task(_keep_telling(registry, head, pairing_port))
        except ClusterError as error:
            line(f"this cluster is not announced: {error}; nodes join by address")
        yield
    finally:
        if telling is not None:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        await registry.close()


async def _keep_telling(registry: Registry, head: Head, pairing_port: int) -> None:
    told = None
    while True:
        if (now := _advert(head, pairing_port)) != told:
            await registry.update(now)
            told = now
        await asyncio.sleep(_EVERY)


async def find_head(settings: NodeSettings) -> Advert:
    """The cluster for a node without an address to join. Raises ClusterError, ConfigError."""
    registry = open_registry(settings.discovery)
    try:
        found = await registry.find(settings.cluster or None, _PATIENCE)
    finally:
        await registry.close()
    line(f"found cluster {found.cluster} at {found.address}: {found.model}, {found.nodes} node(s), {found.state}")
    return found
