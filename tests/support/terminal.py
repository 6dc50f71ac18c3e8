"""`shoal` at a terminal: a pty of a given size, a keyboard, and what stands on the screen."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tests.support import forks
from tests.support.cluster import apart, until

ENTER, CTRL_C, CTRL_D, ALT_ENTER, UP = "\r", "\x03", "\x04", "\x1b\r", "\x1b[A"
PROMPT = "\n>"
_ORDERS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>()][B0]?|\r")


def clean() -> dict[str, str]:
    """This process's environment without what would steer a command."""
    steering = ("SHOAL_", "OPENAI_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering) or name == "SHOAL_CACHE"}


@cache
def _state() -> Path:
    """Of all commands that are given no other place."""
    folder = tempfile.TemporaryDirectory(prefix="shoal-test-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _started(arguments: Sequence[str], stdin: int, stdout: int, stderr: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env=environment,
    )


class Terminal:
    def __init__(self, arguments: Sequence[str], columns: int, stdout: Path | None, environment: Mapping[str, str], starts: bool) -> None:
        """stdout: a file that takes it in place of the terminal. environment: beside `clean`. starts: whether it runs a head or a node."""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with contextlib.ExitStack() as files:
            to = theirs if stdout is None else files.enter_context(stdout.open("wb"))
            full = {**clean(), "TERM": "xterm", **apart(environment, _state()), **environment}
            self.popen = (_started if starts else forks.start)(arguments, theirs, to if isinstance(to, int) else to.fileno(), theirs, full)
        os.close(theirs)
        self._ours, self._shown, self._seen = ours, b"", 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(self._ours, 65536):
                self._shown += part

    @property
    def raw(self) -> str:
        return self._shown.decode(errors="replace")

    @property
    def screen(self) -> str:
        """All that was shown, in its order, without colours and cursor movements."""
        return _ORDERS.sub("", self.raw)

    @property
    def new(self) -> str:
        """What was shown since `until_shown` last found something."""
        return self.screen[self._seen :]

    def until_shown(self, text: str) -> str:
        """Waits for it, after what was found before; answers what came up to it."""
        until(lambda: text in self.new or self._over(), lambda: f"no {text!r} in {self.screen[-3000:]!r}")
        assert text in self.new, f"ended with {self.popen.poll()}: {self.screen[-3000:]}"
        before, found, _ = self.new.partition(text)
        self._seen += len(before) + len(found)
        return before

    def _over(self) -> bool:
        return self.popen.poll() is not None and not self._reader.is_alive()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def settings(self) -> list[Any]:
        """As termios.tcgetattr has them."""
        return termios.tcgetattr(self._ours)

    def wait(self) -> int:
        """The exit status."""
        until(lambda: self.popen.poll() is not None, lambda: self.screen[-3000:])
        self._reader.join(10)
        assert "Traceback" not in self.screen, self.screen
        return self.popen.wait()

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.popen.pid)
            family = [own, *own.children(recursive=True)]
            own.terminate()
            for process in psutil.wait_procs(family, 15)[1]:
                process.kill()
        self.popen.wait()
        os.close(self._ours) if not self._reader.is_alive() else None
        self._reader.join(5)


@contextlib.contextmanager
def terminal(
    *arguments: str,
    columns: int = 80,
    stdout: Path | None = None,
    place: Mapping[str, str] | None = None,
    starts: bool = False,
    **environment: str,
) -> Iterator[Terminal]:
    """Its process is ended, whatever happens inside. place: an environment made before, beside `environment`. starts: a head or a node."""
    made = Terminal(arguments, columns, stdout, {**(place or {}), **environment}, starts)
    try:
        yield made
    finally:
        made.end()


def piped(text: str | bytes, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = forks.run(
        arguments, {**clean(), **apart(environment, _state()), **environment}, text if isinstance(text, bytes) else text.encode()
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
