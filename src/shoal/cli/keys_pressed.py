"""Single keys from the terminal, while something is shown on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterator

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = tty = None

_NAMES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down", "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1b[4~": "end", "\t": "tab", "\x1b[Z": "back tab",
    "\r": "enter", "\n": "enter", "\x7f": "erase", "\x08": "erase", "\x1b": "escape",
}  # fmt: skip
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)


def named(text: str) -> Iterator[str]:
    """What a terminal sends for keys, as their names; characters as they are. Others that it may send are left out."""
    for key in _KEY.findall(text):
        if (name := _NAMES.get(key)) is not None:
            yield name
        elif key.isprintable():
            yield key


@contextlib.contextmanager
def pressed(heard: Callable[[str], None]) -> Generator[None]:
    """Calls `heard` in the running loop with each key; no key is shown, and none is left to the shell. Does nothing where stdin is no
    terminal.

    A thread reads them, which ends with the process: a loop that waits for a terminal lets writes to it fail where it is slow."""
    if termios is None or tty is None or not sys.stdin.isatty():
        yield
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    over = False

    def tell(data: bytes) -> None:
        if not over:
            for key in named(data.decode(errors="ignore")):
                heard(key)

    def read() -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it is closed; the loop is
            while data := os.read(terminal, 1024):
                loop.call_soon_threadsafe(tell, data)

    tty.setcbreak(terminal, termios.TCSANOW)  # Ctrl-C still ends
    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        over = True
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
