"""The nodes that `shoal up` starts: a loaded machine does not lose them for good, and how one ended is said."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.support.cluster import Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("up")) as up:
        up.up("--nodes", "2", "--heartbeat", "0.2")
        up.until_ready()
        yield up


def test_nodes_that_were_silent_for_too_long_come_back(made: Cluster) -> None:
    before, nodes = made.texts(PROMPT), psutil.Process(made.head.popen.pid).children()
    for node in nodes:
        node.suspend()
    until(lambda: "0 of 2 nodes" in made.head.said, made.story)
    for node in nodes:
        node.resume()
    made.until_ready()
    assert made.texts(PROMPT) == before
    assert all(node.is_running() for node in nodes)


def test_how_a_node_ended_is_said(made: Cluster) -> None:
    """The last one here: its cluster goes on with one node."""
    before, node = made.texts(PROMPT), psutil.Process(made.head.popen.pid).children()[0]
    node.send_signal(signal.SIGKILL)
    made.head.until_said(" was killed (SIGKILL)")
    made.until_ready()
    assert made.texts(PROMPT) == before
