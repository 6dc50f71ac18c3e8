"""`shoal nodes --discovery`: when it reads Redis, and what it says."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from typer.testing import CliRunner

from shoal.cli.app import app
from shoal.cli.topology import told
from shoal.discovery.changes import Change, changes
from shoal.discovery.topology import NodeLoad, RequestLoad, RouteState, StageSpan, Topology
from shoal.errors import ClusterError, ConfigError, ShoalError
from shoal.membership.member import Departure
from tests.support.topologies import node, topology

NOWHERE = "redis://127.0.0.1:9"
HEAD = "127.0.0.1:9"


def refusal(*words: str, **environment: str) -> ShoalError:
    error = CliRunner().invoke(app, ["nodes", *words], env=environment).exception
    assert isinstance(error, ShoalError), error
    return error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--discovery", "mdns"], "a head publishes its nodes in Redis only"),
        (["--discovery", "elsewhere"], "a head publishes its nodes in Redis only"),
        (["--discovery", NOWHERE, "--head", HEAD], "give one of them"),
        (["--follow"], "--follow needs --discovery redis://HOST:PORT"),
        (["--follow", "--head", HEAD], "--follow needs --discovery redis://HOST:PORT"),
        (["--discovery", NOWHERE, "drain", "n"], "asks the head itself"),
        (["--discovery", NOWHERE, "--cluster", "*"], "cannot be a cluster's name"),
        (["--discovery", "redis://h/x"], "must end in the number of a database"),
    ],
)
def test_what_makes_no_sense_together_is_refused(words: list[str], said: str):
    error = refusal(*words)
    assert isinstance(error, ConfigError) and said in str(error)


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["--discovery", NOWHERE, "--cluster", "reef"], {}, "no Redis answers at redis://127.0.0.1:9"),
        (["--discovery", NOWHERE], {}, "no Redis answers at redis://127.0.0.1:9"),
        (["--discovery", NOWHERE, "--follow", "--cluster", "reef"], {}, "no Redis answers at redis://127.0.0.1:9"),
        ([], {"SHOAL_DISCOVERY": NOWHERE}, "no Redis answers at redis://127.0.0.1:9"),
        (["--discovery", NOWHERE], {"SHOAL_HEAD": HEAD}, "no Redis answers at redis://127.0.0.1:9"),
        (["--head", HEAD], {"SHOAL_DISCOVERY": NOWHERE}, "no head answers at 127.0.0.1:9"),
        ([], {"SHOAL_DISCOVERY": "mdns", "SHOAL_HEAD": HEAD}, "no head answers at 127.0.0.1:9"),
    ],
)
def test_who_is_asked(words: list[str], environment: dict[str, str], said: str):
    error = refusal(*words, **environment)
    assert isinstance(error, ClusterError) and said in str(error)


a = node("a")
COPY = RouteState("5eed", "toy", "serving", 3, [StageSpan("b", "0-14")], requests=RequestLoad(1, 0, 8), replica=2)
BUSY = msgspec.structs.replace(COPY, requests=RequestLoad(8, 2, 8))


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (topology(), topology(a), ["a joined at 10.0.0.1:7000: serving, layers 0-14"]),
        (topology(), topology(node("a", state="joining")), ["a is joining at 10.0.0.1:7000: joining, layers 0-14"]),
        (topology(a), topology(node("a", state="suspected")), ["a: suspected, layers 0-14"]),
        (topology(a), topology(msgspec.structs.replace(a, layers="", held=9, experts={"0": "0-8"})), ["a holds something else now: serving, 9 experts"]),
        (topology(a), topology(departed={1: Departure("it may leave", True)}), ["a left: it may leave"]),
        (topology(a), topology(departed={1: Departure("its connection ended", False)}), ["a is lost: its connection ended"]),
        (topology(a), topology(), ["a left: no reason is known"]),
        (topology(a), topology(a, epoch=2), ["toy: serving, epoch 2: a 0-14; 0 of 0 slots taken, 0 waiting"]),
        (topology(a), replace(topology(a), others=[COPY]), ["toy/2: serving, epoch 3: b 0-14; 1 of 8 slots taken, 0 waiting"]),
        (replace(topology(a), others=[COPY]), topology(a), ["there is no other pipeline any more"]),
        (replace(topology(a), others=[COPY]), replace(topology(a), others=[BUSY]), ["toy/2 8 of 8 slots taken, 2 waiting"]),
        (topology(a), topology(msgspec.structs.replace(a, further={"toy/2": "0-9"})), ["a holds something else now: serving, layers 0-14, 0-9 of toy/2"]),
        (topology(a), replace(topology(a), route=RouteState("5eed", "", "waiting")), ["no model is loaded"]),
        (topology(a), topology(node("a", load=NodeLoad(busy=0.25, queue=2))), ["a 25% busy, 2 waiting"]),
    ],
)  # fmt: skip
def test_every_change_is_a_line(before: Topology, now: Topology, lines: list[str]):
    assert [told(change) for change in changes(before, now)] == lines


def test_what_only_a_reader_knows_and_what_a_newer_head_says_are_lines_too():
    assert told(Change("load", requests=RequestLoad(3, 1, 8))) == "3 of 8 slots taken, 1 waiting"
    assert told(Change("silent")) == "the head is silent: what it wrote has expired"
    assert told(Change("heard")) == "the head is heard again"
    assert told(Change("closed")) == "the head shut down"
    assert told(Change("promoted", node="a")) == "promoted a"
    assert told(Change("joined", node="a")) == "joined a"  # as a stranger may write it
