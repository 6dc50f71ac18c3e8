"""An application behind a real socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from fastapi import FastAPI

from shoal.gateway.server import ApiServer, listening


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Its URL; it is stopped in any case."""
    with listening("127.0.0.1", 0) as address:
        api = ApiServer(app, address)
        thread = threading.Thread(target=lambda: asyncio.run(api.serve()))
        thread.start()
        try:
            yield f"http://127.0.0.1:{api.port}"
        finally:
            api.stop()
            thread.join()
