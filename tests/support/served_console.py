"""The gateway with a fake engine and a fake operator behind it, in a thread: the console against whatever a test makes up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shoal.config import ApiSettings
from shoal.gateway.app import create_app
from shoal.gateway.engines import ServedEngines
from shoal.gateway.server import ApiServer, listening
from tests.support.engine import FakeEngine
from tests.support.operator import FakeOperator


@contextmanager
def served_console(
    folder: Path, operator: FakeOperator, engine: FakeEngine, *others: FakeEngine, aliases: Mapping[str, str] | None = None
) -> Iterator[str]:
    """folder: for keys. engine: of the default model. Yields the server's address; what operator and engines say may change while it runs."""
    app = create_app(ServedEngines([engine, *others], engine, aliases), ApiSettings(data=str(folder), grace=0), operator=operator)
    with listening("127.0.0.1", 0) as address:
        server = ApiServer(app, address)
        stop = threading.Event()

        async def serve() -> None:
            running = asyncio.create_task(server.serve())
            await asyncio.to_thread(stop.wait)
            server.stop()
            await running

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            stop.set()
            thread.join()
