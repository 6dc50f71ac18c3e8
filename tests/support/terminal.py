"""`python -m shoal` at a terminal: a pty of a given size, a keyboard, and what stands on the screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.cluster import until

ENTER, CTRL_C, CTRL_D, ALT_ENTER, UP = "\r", "\x03", "\x04", "\x1b\r", "\x1b[A"
PROMPT = "\n>"
_ORDERS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>()][B0]?|\r")


def clean() -> dict[str, str]:
    """This process's environment without what would steer a command."""
    steering = ("SHOAL_", "OPENAI_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering) or name == "SHOAL_CACHE"}


class Terminal:
    def __init__(self, arguments: Sequence[str], columns: int, stdout: Path | None, environment: Mapping[str, str]) -> None:
        """stdout: a file that takes it in place of the terminal. environment: beside `clean`."""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with contextlib.ExitStack() as files:
            to = theirs if stdout is None else files.enter_context(stdout.open("wb"))
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "shoal", *arguments],
                stdin=theirs,
                stdout=to,
                stderr=theirs,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                env={**clean(), "TERM": "xterm", **environment},
            )
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

    def wait(self) -> int:
        """The exit status."""
        until(lambda: self.popen.poll() is not None, lambda: self.screen[-3000:])
        self._reader.join(10)
        assert "Traceback" not in self.screen, self.screen
        return int(self.popen.returncode)

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
    *arguments: str, columns: int = 80, stdout: Path | None = None, place: Mapping[str, str] | None = None, **environment: str
) -> Iterator[Terminal]:
    """Its process is ended, whatever happens inside. place: an environment made before, beside `environment`."""
    made = Terminal(arguments, columns, stdout, {**(place or {}), **environment})
    try:
        yield made
    finally:
        made.end()


def piped(text: str | bytes, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        timeout=60,
        check=False,
        env={**clean(), **environment},
    )
    out = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in out.stderr, out.stderr
    return out
