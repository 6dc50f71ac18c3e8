"""The event loop of a command, and the signals that it handles."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shoal.cli import garbage

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's work to its end, in uvloop if available. From here on garbage is collected as usual."""
    garbage.resume()
    return asyncio.run(work) if uvloop is None else uvloop.run(work)


def on_signal(number: signal.Signals, heard: Callable[[], object]) -> None:
    """Calls `heard` in the running loop whenever the signal arrives."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, heard)
    except NotImplementedError:  # Windows

        def call(*_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(heard)

        signal.signal(number, call)
