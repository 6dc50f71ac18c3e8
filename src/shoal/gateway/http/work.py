"""Runs the expensive parts of a request in threads: reading its body, templates, tokenisers, grammars.

Not in the event loop, and not in the loop's own threads, which look up keys and files. Large work has separate threads, so that
small work does not wait behind it, and only a limited amount of large work may wait. The parts that take long release the
interpreter's lock (tokenizers, llguidance); the others are limited by the size of a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

from shoal.errors import QueueFull

P = ParamSpec("P")
T = TypeVar("T")

LARGE = 32 << 10
"""Bytes from which a body counts as large: its text takes up to 20 ms, others less than one."""
MOST = 64
"""Large bodies that may be processed or wait for it."""

_small = ThreadPoolExecutor(2, "text")
_large = ThreadPoolExecutor(2, "large-text")
_busy = 0


async def work(size: int, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `do` in a thread, in this context. size: bytes of the body that it is for.

    Raises QueueFull if too much work of that size waits, and what `do` raises.
    """
    global _busy
    loop, context = asyncio.get_running_loop(), copy_context()
    if size < LARGE:
        return await loop.run_in_executor(_small, lambda: context.run(do, *args, **kwargs))
    if _busy >= MOST:
        raise QueueFull(_busy, MOST, "large requests")
    doing = loop.run_in_executor(_large, lambda: context.run(do, *args, **kwargs))
    _busy += 1
    doing.add_done_callback(_done)
    return await doing


def _done(doing: asyncio.Future[T]) -> None:
    global _busy
    _busy -= 1
