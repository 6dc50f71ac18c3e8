"""A Redis server in Python, for machines without `redis-server`. As a command: PORT on the loopback interface, the password on stdin."""

from __future__ import annotations

import re
import socket
import sys
import uuid

from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from fakeredis._commands import command
from fakeredis.commands_mixins.server_mixin import ServerCommandsMixin

RUN = uuid.uuid4().hex


@command((), (bytes,))
def info(self: ServerCommandsMixin, *sections: bytes) -> bytes:
    """fakeredis has no INFO."""
    return f"# Server\r\nrun_id:{RUN}\r\n".encode()


ServerCommandsMixin.info = info  # pyright: ignore[reportAttributeAccessIssue]


class Guarded(TCPFakeRequestHandler):
    """fakeredis checks the password that it is given, and asks nobody for one."""

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if self.server.fake_server.config:
            self._ask()
        super().setup()

    def _ask(self) -> None:
        while (heard := self.request.recv(4096, socket.MSG_PEEK)) and b"\r\nAUTH\r\n" not in heard:
            self.request.recv(len(heard))
            commands = len(re.findall(rb"^(?:\*\d|PING)", heard, re.MULTILINE))
            self.request.sendall(b"-NOAUTH Authentication required.\r\n" * commands)


def main() -> None:
    server = TcpFakeServer(("127.0.0.1", int(sys.argv[1])))
    server.RequestHandlerClass = Guarded
    if password := sys.stdin.read():
        server.fake_server.config[b"requirepass"] = password.encode()
    server.serve_forever()


if __name__ == "__main__":
    main()
