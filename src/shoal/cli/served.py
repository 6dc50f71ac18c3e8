"""A cluster on this machine, for as long as a command needs it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from shoal.cli.cluster import fetched
from shoal.cli.show import err
from shoal.cli.waiting import until
from shoal.config import ApiSettings, EngineSettings, HeadSettings, NodeSettings
from shoal.gateway.app import create_app
from shoal.gateway.auth.keyring import Keyring
from shoal.gateway.server import ApiServer, listening
from shoal.launch.engines import HeadEngines
from shoal.launch.local import local_cluster
from shoal.node.head import Head
from shoal.node.model_engine import ModelOffer


@contextlib.asynccontextmanager
async def served(settings: HeadSettings, node: NodeSettings, nodes: int, stop: asyncio.Event) -> AsyncGenerator[tuple[str, Head] | None]:
    """A local cluster with its API on a free port; None if the user stopped it first."""
    if (model := await fetched(settings.engine.model, stop)) is None:
        yield None
        return
    async with local_cluster(settings, node, [ModelOffer(model, settings.engine)], nodes) as cluster:
        with err.status(f"starting {nodes} node{'s' if nodes > 1 else ''} with {model.name}"):
            if not await until(stop, cluster.until_ready()):
                yield None
                return
        with listening("127.0.0.1", 0) as address:
            engines = HeadEngines(cluster.head)
            api = ApiServer(create_app(engines, keyring=Keyring(None), operator=cluster.head.operator), address)
            serving = asyncio.ensure_future(api.serve())
            try:
                yield f"http://127.0.0.1:{api.port}", cluster.head
            finally:
                cluster.head.refuse("the cluster is shutting down")
                api.stop()
                await serving


def local_settings(engine: EngineSettings) -> HeadSettings:
    """A head for a cluster on this machine, on free ports."""
    return HeadSettings(engine=engine, api=ApiSettings(port=0), control_port=0)
