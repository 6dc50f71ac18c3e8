"""The nodes that `shoal up` starts: a loaded machine does not lose them for good, and how one ended is said."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "Once upon a time"


def test_nodes_that_were_silent_for_too_long_come_back(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.up("--nodes", "2", "--heartbeat", "0.2")
        made.until_ready()
        before, nodes = made.texts(PROMPT), psutil.Process(made.head.popen.pid).children()
        for node in nodes:
            node.suspend()
        until(lambda: "0 of 2 nodes" in made.head.said, made.story)
        for node in nodes:
            node.resume()
        made.until_ready()
        assert made.texts(PROMPT) == before
        assert all(node.is_running() for node in nodes)


def test_how_a_node_ended_is_said(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.up("--nodes", "2")
        made.until_ready()
        before, node = made.texts(PROMPT), psutil.Process(made.head.popen.pid).children()[0]
        node.send_signal(signal.SIGKILL)
        made.head.until_said(" was killed (SIGKILL)")
        made.until_ready()
        assert made.texts(PROMPT) == before
