"""Garbage is collected rarely while a command imports, and as usual in its event loop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from shoal.cli import garbage
from shoal.cli.loop import run


class _Node:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_it_is_collected_as_usual_where_a_command_works():
    usual = gc.get_threshold()

    async def work() -> bool:
        dropped = weakref.ref(_Node())
        gc.collect()
        return gc.isenabled() and gc.get_threshold() == usual and dropped() is None

    garbage.postpone()
    assert gc.get_threshold()[0] > usual[0]
    assert run(work())


def test_a_command_without_an_event_loop_collects_it_too():
    garbage.postpone()
    dropped = weakref.ref(_Node())
    kept = [[] for _ in range(1_100_000)]
    assert gc.isenabled() and dropped() is None and kept
