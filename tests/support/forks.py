"""Commands as forks of a process that has imported their modules: processes of their own in all but the start-up.

A command that only says what is wrong spends nine tenths of its time importing. Each fork has the streams, environment, session and exit
status that `python -m shoal` would have. They are for commands that ask, list or complain: import times need real starts, and so does what
runs a head or a node, whose libraries start threads.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

_IMPORTED = (
    "asyncio", "cryptography.x509", "fastapi", "gguf", "google.protobuf.json_format", "httpx2", "jinja2", "numpy", "psutil",
    "prompt_toolkit", "pydantic", "rich.columns", "rich.markdown", "rich.panel", "rich.progress", "rich.table", "structlog", "uvicorn",
    "uvloop", "shoal.cli.app", "shoal.control.messages", "shoal.executor.cost", "shoal.models.sources", "shoal.placement.partition",
)  # fmt: skip
"""Nothing that looks at the terminal or the environment while it is imported, as `shoal.cli.show` does, and not gRPC, which takes no fork after it."""
_LONGEST = 1 << 17


class Fork:
    """A command that runs, with what its users need of `subprocess.Popen`."""

    def __init__(self, report: socket.socket) -> None:
        self._report = report
        self.pid = int(report.recv(32))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self._hear(0)
        return self.returncode

    def wait(self, seconds: float = 60) -> int:
        """The exit status; -N after signal N. Raises TimeoutError."""
        self._hear(seconds)
        if self.returncode is None:
            raise TimeoutError
        return self.returncode

    def _hear(self, seconds: float) -> None:
        if self.returncode is None and select.select([self._report], [], [], seconds)[0]:
            self.returncode = int(self._report.recv(32))
            self._report.close()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(arguments: Sequence[str], stdin: int, stdout: int, stderr: int, environment: Mapping[str, str]) -> Fork:
    """Runs `shoal` with these arguments, in a session of its own whose terminal is stdin where that is one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = json.dumps([list(arguments), dict(environment), os.getcwd()]).encode(errors="surrogateescape")
    assert len(request) < _LONGEST
    with theirs:
        socket.send_fds(_forking(), [request], [stdin, stdout, stderr, theirs.fileno()])
    return Fork(ours)


def run(arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """To its end. stdin: what a pipe holds; None: /dev/null."""
    with contextlib.ExitStack() as files:
        out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        if stdin is None:
            read = files.enter_context(open(os.devnull, "rb")).fileno()
        else:
            read, write = os.pipe()
            files.callback(os.close, read)
            with open(write, "wb") as pipe:
                pipe.write(stdin)
        command = start(arguments, read, out.fileno(), err.fileno(), environment)
        try:
            status = command.wait()
        finally:
            command.send_signal(signal.SIGKILL)  # nothing, where it has ended
        said: list[str] = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(["shoal", *arguments], status, *said)


@cache
def _forking() -> socket.socket:
    """A connection to the process that is forked."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True
        )
    atexit.register(_end, ours, process)
    return ours


def _end(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    connection.close()
    process.wait()


def _become_a_command(connection: socket.socket) -> bool:
    """Returns True in each fork that is to run one, ready for it, and False when nobody asks any more."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, 4)
        if not request:
            return False
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            connection.close()
            return _keep(request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(request: bytes, stdin: int, stdout: int, stderr: int, report: int) -> bool:
    """Forks again. This process tells how the other one, in which it returns, ended."""
    with socket.socket(fileno=report) as told:
        if (pid := os.fork()) != 0:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
            with contextlib.suppress(OSError):  # nobody waits for it
                told.send(str(pid).encode())
                status = os.waitpid(pid, 0)[1]
                told.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    arguments, environment, folder = json.loads(request)
    os.setsid()
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - live as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["shoal", *arguments]
    return True


def _end_now(status: Any) -> NoReturn:
    """Like the end of the interpreter, but for taking every module apart."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # what is there already is not copied for being counted
    if _become_a_command(socket.socket(fileno=int(sys.argv[1]))):
        from shoal.cli.app import main

        try:
            main()
        except SystemExit as ended:
            _end_now(ended.code)
