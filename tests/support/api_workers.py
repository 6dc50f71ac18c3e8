"""The API's worker processes of a head, and whom they serve."""

from __future__ import annotations

import contextlib

import psutil

from tests.support.cluster import Cluster


def workers(made: Cluster) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in made.head.family()[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if "shoal.cli.api_worker" in process.cmdline():
                found.append(process)
    return found


def serves(worker: psutil.Process, port: int) -> bool:
    """Whether it has the client at that port of the loopback."""
    return any(c.raddr and c.raddr.port == port for c in worker.net_connections("tcp"))
