"""Waiting that a signal ends, and reading stdin meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from shoal.cli.loop import on_signal
from shoal.errors import ConfigError


def stop_signal() -> asyncio.Event:
    """Set by Ctrl-C or SIGTERM."""
    event = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        on_signal(number, event.set)
    return event


async def until(stop: asyncio.Event, work: Any) -> bool:
    """Does the work unless told to stop. Returns whether it was done."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return False


async def all_of_stdin(stop: asyncio.Event) -> str | None:
    """All text of stdin; None after a stop. Raises ConfigError."""
    if (data := await _read(stop, _all)) is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError("stdin is not UTF-8 text") from None


async def a_line(prompt: str, stop: asyncio.Event) -> str | None:
    """The line that the user types after a prompt on stderr; None after a stop, and at the end of stdin. Raises ConfigError."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    data = await _read(stop, _line)
    return data.decode(errors="replace") if data else None


def _parts() -> Iterator[bytes]:
    """Parts of stdin as they arrive; not through sys.stdin, whose lock a waiting thread would still hold when the interpreter ends."""
    return iter(lambda: os.read(sys.stdin.fileno(), 65536), b"")


def _all() -> bytes:
    return b"".join(_parts())


def _line() -> bytes:
    return next(_parts(), b"")  # a terminal gives one line at a time


async def _read(stop: asyncio.Event, read: Callable[[], bytes]) -> bytes | None:
    """Reads in a thread that ends with the process. Raises ConfigError."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def work() -> None:
        data, failure = b"", None
        try:
            data = read()
        except OSError as error:
            failure = ConfigError(f"stdin cannot be read: {error.strerror or error}")
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if failure is None:
                loop.call_soon_threadsafe(done.set_result, data)
            else:
                loop.call_soon_threadsafe(done.set_exception, failure)

    threading.Thread(target=work, daemon=True).start()
    return done.result() if await until(stop, asyncio.wait({done})) else None
