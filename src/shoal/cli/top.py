"""`shoal top`: a cluster in the terminal, until q or Ctrl-C; once where nobody watches."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Generator

import msgspec
from rich.console import Group
from rich.live import Live
from rich.text import Text

from shoal.cli.asking import ChatOptions
from shoal.cli.console import here
from shoal.cli.keys_pressed import pressed
from shoal.cli.loop import on_signal
from shoal.cli.loop import run as run_in_loop
from shoal.cli.operator_client import OperatorClient, Sight
from shoal.cli.show import emit, out
from shoal.cli.top_page import Look, page, whole
from shoal.cli.waiting import stop_signal
from shoal.cli.watch import every
from shoal.errors import ClusterError

_EVENTS = 500


def top(url: str, key: str, interval: float, once: bool, as_json: bool) -> None:
    """url: '': of this machine. interval: seconds. Raises ClusterError, ConfigError, InvalidRequest."""
    run_in_loop(_top(url, key, interval, once or not out.is_terminal, as_json))


async def _top(url: str, key: str, interval: float, once: bool, as_json: bool) -> None:
    stop = stop_signal()
    async with OperatorClient(ChatOptions(url or here(), key)) as client:
        first = await client.seen(_EVENTS)
        if as_json:
            emit(msgspec.to_builtins(first))
        elif once:
            others = [await client.cluster(one.name) for one in first.cluster.pipelines if one.name != first.cluster.pipeline]
            out.print(Text("\n").join(whole(first, others)), soft_wrap=True)
        else:
            await Top(client, first, interval, stop).run()


class Top:
    def __init__(self, client: OperatorClient, first: Sight, interval: float, stop: asyncio.Event) -> None:
        self._client, self._seen, self._interval, self._stop = client, first, interval, stop
        self._look, self._trouble = Look(), ""
        self._sooner = asyncio.Event()
        self._live = Live(console=out, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    async def run(self) -> None:
        with self._live, pressed(self._press), _resized(self._draw):
            self._draw()
            async for _ in every(self._interval, self._stop, self._look_again, self._sooner):
                self._draw()

    async def _look_again(self) -> None:
        try:
            self._seen, self._trouble = await self._client.seen(_EVENTS, self._look.pipeline), ""
        except ClusterError as error:
            self._trouble = str(error)  # what was seen stays

    def _press(self, key: str) -> None:
        before = self._look.pipeline
        if self._look.press(key):
            self._stop.set()
        elif self._look.pipeline != before:
            self._sooner.set()
        else:
            self._draw()

    def _draw(self) -> None:
        width, height = out.size
        lines = page(self._seen, self._look, width, height, self._trouble)
        self._live.update(Group(*lines), refresh=True)


@contextlib.contextmanager
def _resized(heard: Callable[[], None]) -> Generator[None]:
    """Calls `heard` when the terminal gets another size."""
    if (number := getattr(signal, "SIGWINCH", None)) is not None:  # not on Windows
        on_signal(number, heard)
    yield
