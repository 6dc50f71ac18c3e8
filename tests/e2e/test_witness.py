"""`shoal witness` as a process, and heads as processes that lead by its lease: killed, stopped, and gone on."""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shoal.security.authority import Authority
from shoal.security.certificates import Role
from tests.support.cluster import until

pytestmark = [pytest.mark.real, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SECONDS = "2"


class Program:
    def __init__(self, log: Path, *command: str) -> None:
        self._out, self._err = log, log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            environment = {**os.environ, "SHOAL_HOME": str(log.parent / "home"), "COLUMNS": "300"}
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment
            )

    @property
    def said(self) -> str:
        return self._out.read_text() + self._err.read_text()

    @property
    def last(self) -> str:
        """What a head said last; '' if it has said nothing. Its log is between."""
        return ["", *re.findall(r"^(?:leads \d+|follows)$", self._out.read_text(), re.MULTILINE)][-1]

    def until_last(self, fits: Callable[[str], bool]) -> str:
        return until(lambda: self.last if fits(self.last) else "", lambda: self.said)

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.popen.kill()
        self.popen.wait()


class Field:
    def __init__(self, folder: Path) -> None:
        self.folder, self.programs = folder, list[Program]()

    def start(self, *command: str) -> Program:
        self.programs.append(made := Program(self.folder / f"{len(self.programs)}.log", *command))
        return made

    def witness(self, *flags: str, port: str = "0") -> tuple[Program, str]:
        program = self.start("shoal", "witness", "--port", port, *flags)
        found = until(lambda: re.search(r"witness://(\S+)", program.said), lambda: program.said)
        return program, found[1]

    def head(self, address: str, number: int, *more: str, seconds: str = SECONDS) -> Program:
        return self.start("tests.support.leading", f"witness://{address}", f"10.0.0.{number}:7420", seconds, *more)


@contextmanager
def field(folder: Path) -> Iterator[Field]:
    made = Field(folder)
    try:
        yield made
    finally:
        for program in made.programs:
            program.kill()


def test_a_stopped_leader_follows_when_it_goes_on_and_a_killed_one_is_replaced(tmp_path: Path):
    with field(tmp_path) as made:
        _, address = made.witness()
        first = made.head(address, 1)
        assert first.until_last(lambda said: said.startswith("leads")) == "leads 1"
        second = made.head(address, 2)
        first.popen.send_signal(signal.SIGSTOP)
        assert second.until_last(lambda said: said.startswith("leads")) == "leads 2"
        first.popen.send_signal(signal.SIGCONT)
        first.until_last(lambda said: said == "follows")
        assert second.last == "leads 2"
        second.kill()
        assert first.until_last(lambda said: said.startswith("leads")) == "leads 3"
        assert re.findall(r"^leads \d+$", first.said, re.MULTILINE) == ["leads 1", "leads 3"]


def test_a_killed_witness_that_comes_back_has_the_same_leader(tmp_path: Path):
    with field(tmp_path) as made:
        witness, address = made.witness()
        seconds = 10  # more than a witness takes to start
        leader = made.head(address, 1, seconds=str(seconds))
        leader.until_last(lambda said: said == "leads 1")
        other = made.head(address, 2, seconds=str(seconds))
        for _ in range(2):
            witness.kill()
            witness, _ = made.witness(port=address.rpartition(":")[2])
            time.sleep(seconds)  # its grant from before has ended, unless it was renewed
            assert (leader.last, other.last) == ("leads 1", "follows")
        leader.kill()
        assert other.until_last(lambda said: said.startswith("leads")) == "leads 2"


def test_without_its_witness_the_leader_steps_down(tmp_path: Path):
    with field(tmp_path) as made:
        witness, address = made.witness()
        first, second = made.head(address, 1), made.head(address, 2)
        until(lambda: any(head.last.startswith("leads") for head in (first, second)))
        witness.kill()
        for head in (first, second):
            head.until_last(lambda said: said == "follows")
        made.witness(port=address.rpartition(":")[2])
        until(lambda: any(head.last.startswith("leads") for head in (first, second)))


def test_with_a_certificate_only_the_clusters_heads_lead(tmp_path: Path):
    now = dt.datetime.now(dt.UTC)
    ours, theirs = Authority.create(now), Authority.create(now)
    ours.credentials(Role.WITNESS, "witness").save(tmp_path / "witness.pem")
    ours.credentials(Role.HEAD, "head").save(tmp_path / "head.pem")
    theirs.credentials(Role.HEAD, "head").save(tmp_path / "theirs.pem")
    with field(tmp_path) as made:
        _, address = made.witness("--credentials", str(tmp_path / "witness.pem"))
        stranger = made.head(address, 2, str(tmp_path / "theirs.pem"))
        head = made.head(address, 1, str(tmp_path / "head.pem"))
        assert head.until_last(lambda said: said.startswith("leads")) == "leads 1"
        until(lambda: "cannot ask for the lease" in stranger.said, lambda: stranger.said)
        assert stranger.last == "follows"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--host", "0.0.0.0"), "needs a certificate"),
        (("--port", "70000"), "65535"),
        (("--credentials", "none.pem"), "none.pem"),
        (("--host", "10.0.0.256"), "not a host"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(tmp_path: Path, flags: tuple[str, ...], words: str):
    with field(tmp_path) as made:
        refused = made.start("shoal", "witness", *flags)
        assert refused.popen.wait(60) == 2
        assert words in refused.said and "Traceback" not in refused.said


def test_two_witnesses_do_not_share_a_ledger(tmp_path: Path):
    with field(tmp_path) as made:
        made.witness()
        second = made.start("shoal", "witness", "--port", "0")
        assert second.popen.wait(60) == 2 and "another witness uses" in second.said
