"""A Redis server for the tests, on a free port of the loopback interface; nothing is kept on disk.

The system's `redis-server` where there is one, else one in Python (fakeredis). Both are processes, and are killed as such.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]


class RedisServer:
    """Started when made; `stop` and `start` again as a scenario wants it. The port stays the same."""

    def __init__(self, folder: Path, password: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.password = password
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = self._real(found, log) if (found := shutil.which("redis-server")) else self._fake(log)
        while self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64):  # +PONG, or -NOAUTH
                        return
            except OSError:
                pass
            time.sleep(0.01)
        self.stop()
        raise AssertionError("Redis does not start:\n" + (self._folder / "redis.log").read_text()[-2000:])

    def _real(self, binary: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder, "daemonize": "no"}
        if self.password:
            options["requirepass"] = self.password
        command = [binary, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _fake(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.fake_redis", str(self.port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(self.password.encode())
        process.stdin.close()
        return process

    def pause(self) -> None:
        """It answers nobody, and keeps what it has."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # nothing is on disk; SIGTERM would only be slower
            process.wait(10)
