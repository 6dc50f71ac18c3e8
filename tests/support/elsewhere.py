"""Makes this process as poor as one on Windows: `python -m tests.support.elsewhere import`, or `... shoal ARGUMENTS`.

Only what shoal's own code reaches for goes away; libraries choose by `sys.platform`, and keep what they have chosen.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import fcntl
import functools
import importlib
import os
import pkgutil
import signal
import socket
import struct
import sys
from types import ModuleType
from typing import Any

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}
ATTRIBUTES: dict[ModuleType, tuple[str, ...]] = {
    os: (
        "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fchown", "fork", "forkpty", "getegid",
        "geteuid", "getgid", "getloadavg", "getpgid", "getsid", "getuid", "killpg", "mkfifo", "posix_spawn", "pread", "preadv", "pwrite",
        "pwritev", "sched_getaffinity", "sched_setaffinity", "sendfile", "setsid", "sync", "uname",
    ),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pthread_sigmask"),
    socket: ("AF_UNIX", "SO_REUSEPORT"),
    asyncio: ("open_unix_connection", "start_unix_server"),
}  # fmt: skip
ONE_PLATFORM = {"shoal.__main__"}  # runs when it is imported
_real = builtins.__import__


class Msvcrt(ModuleType):
    """The locks of that module: a byte where the file's position is, for one open file alone, without waiting."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor: int, mode: int, size: int) -> None:
        assert mode == Msvcrt.LK_NBLCK
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, os.lseek(descriptor, 0, os.SEEK_CUR), size, 0)
        try:
            fcntl.fcntl(descriptor, 37, lock)  # F_OFD_SETLK
        except BlockingIOError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if name.partition(".")[0] in MODULES and str((globals or {}).get("__name__", "")).partition(".")[0] == "shoal":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _real(name, globals, locals, fromlist, level)


def every_module() -> list[str]:
    shoal = importlib.import_module("shoal")
    return ["shoal", *(m.name for m in pkgutil.walk_packages(shoal.__path__, "shoal.") if m.name not in ONE_PLATFORM)]


def import_all() -> None:
    for name in every_module():
        importlib.import_module(name)


def impoverish() -> None:
    import_all()  # and with them their libraries, which are to find what they need
    for name in [m for m in sys.modules if m.partition(".")[0] == "shoal" and not m.endswith(("_pb2", "._kernels"))]:
        del sys.modules[name]
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # there it is made of two TCP sockets
    for module, names in ATTRIBUTES.items():
        for name in names:
            vars(module).pop(name, None)
    builtins.__import__ = _import

    def refused(*_: Any) -> None:
        raise NotImplementedError

    asyncio.BaseEventLoop.add_signal_handler = refused  # pyright: ignore[reportAttributeAccessIssue]
    asyncio.SelectorEventLoop.add_signal_handler = refused  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["msvcrt"] = Msvcrt("msvcrt")


if __name__ == "__main__":
    impoverish()
    if sys.argv[1] == "import":
        import_all()
    else:
        del sys.argv[0]
        importlib.import_module("shoal.cli.app").main()
