"""Work that is done beside other work, for as long as that lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, object]) -> AsyncGenerator[None]:
    """They run until the context is left, and are then cancelled. If one fails before, what is done in the context is cancelled. Raises
    what failed first."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            try:
                yield
            finally:
                for task in tasks:
                    if not task.cancelling():  # as those are that another's failure has ended
                        task.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
