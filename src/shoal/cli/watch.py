"""Something that is shown again and again, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from shoal.cli.show import out
from shoal.cli.waiting import stop_signal, until
from shoal.errors import ClusterError, ConfigError

_INTERVAL = 1.0  # seconds


async def every(
    interval: float, stop: asyncio.Event, work: Callable[[], Awaitable[None]], now: asyncio.Event | None = None
) -> AsyncIterator[None]:
    """Yields each time the work is done, `interval` seconds after the time before or when `now` is set, until told to stop."""
    now = now or asyncio.Event()
    while await until(stop, _pause(interval, now)) and not stop.is_set() and await until(stop, work()):
        yield


async def _pause(seconds: float, over: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()
    over.clear()


async def watched(look: Callable[[], Awaitable[RenderableType]]) -> None:
    """Shows what `look` answers, and with it why there is nothing newer. Raises ConfigError without a terminal, ClusterError if the first
    look fails."""
    if not out.is_terminal:
        raise ConfigError("--watch needs a terminal; leave it out to print the table once")
    stop, shown = stop_signal(), [await look()]

    async def again() -> None:
        try:
            shown[:] = [await look()]
        except ClusterError as error:
            shown[1:] = [Text(str(error), style="red")]

    with Live(shown[0], console=out, auto_refresh=False, vertical_overflow="crop") as live:
        live.refresh()
        async for _ in every(_INTERVAL, stop, again):
            live.update(Group(*shown), refresh=True)
