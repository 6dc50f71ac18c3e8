"""The text of a systemd unit that keeps `shoal serve` or `shoal join` running; see systemd.service(5) and systemd.exec(5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

JOIN_STOPS = 120.0  # seconds that a node has to get its layers moved to others before it is killed
_MARGIN = 15.0  # seconds beyond --grace in which a head ends what is left and its own processes

# Settings that work for user services and system services. No MemoryDenyWriteExecute: Node.js, which fetches some models, and
# OpenVINO compile code while they run.
_HARDENED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
# Settings that need privileges, or namespaces, which some systems deny to users.
_SYSTEM_HARDENED = """\
CapabilityBoundingSet=
ProtectSystem=strict
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
"""


@dataclass(frozen=True)
class Account:
    """The account that a system service runs as. home: the only folder that it may write to."""

    name: str
    home: str


def quoted(word: str) -> str:
    """A word of a command line, quoted so that systemd passes on exactly this."""
    word = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%$+=:,./-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def unit(command: Sequence[str], stops: float, account: Account | None = None) -> str:
    """command: the program's absolute path and its arguments. stops: seconds that it has to end. account: None: a user's service."""
    what = " ".join(command[1:2])
    system = account is not None
    # A user's manager has no network-online.target; there, Restart waits for the network.
    after = "Wants=network-online.target\nAfter=network-online.target\n" if system else ""
    owner = f"User={account.name}\nReadWritePaths={quoted(account.home)}\n" if account is not None else ""
    return f"""\
[Unit]
Description=shoal {what}
{after}StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={" ".join(map(quoted, command))}
EnvironmentFile=-%E/shoal/service.env
{owner}Restart=on-failure
RestartSec=10
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec={stops:g}

{_HARDENED}{_SYSTEM_HARDENED if system else ""}
[Install]
WantedBy={"multi-user" if system else "default"}.target
"""


def stops_after(command: str, grace: float) -> float:
    """Seconds that a service has to end: for `serve`, by its --grace."""
    return JOIN_STOPS if command == "join" else grace + _MARGIN
