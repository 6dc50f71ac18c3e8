"""The event loop of a command: what it does about garbage."""

from __future__ import annotations

import gc
import weakref

from shoal.cli.loop import run


class _Node:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_collected_where_a_command_works():
    async def work() -> bool:
        dropped = weakref.ref(_Node())
        gc.collect()
        return gc.isenabled() and dropped() is None

    gc.disable()
    try:
        assert run(work())
    finally:
        gc.unfreeze()
        gc.enable()
