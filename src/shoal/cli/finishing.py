"""The end of a server that still has requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from shoal.cli.show import err


class Unfinished(Protocol):
    @property
    def inside(self) -> int:
        """Unfinished requests."""
        ...

    def finish(self) -> Coroutine[Any, Any, None]:
        """Accepts no more requests, and waits until the current ones are answered."""
        ...


async def finished(api: Unfinished, stop: asyncio.Event, grace: float) -> None:
    """Returns when its requests are answered, after `grace` seconds, or when told to stop again."""
    stop.clear()
    if api.inside and grace:
        err.print(f"{api.inside} request(s) have {grace:g} s to end; once more ends them at once", markup=False)
    tasks = [asyncio.ensure_future(work) for work in (api.finish(), stop.wait())]
    await asyncio.wait(tasks, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
