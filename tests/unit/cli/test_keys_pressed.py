"""Keys from a terminal, one by one."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator

import pytest

from shoal.cli import loop
from shoal.cli.keys_pressed import named, pressed
from tests.support.http import eventually


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where keys are typed; stdin is its other end."""
    ours, theirs = pty.openpty()
    with open(theirs, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


def test_keys_are_heard_and_the_terminal_stays_as_it_is_for_whoever_writes(terminal: int) -> None:
    """Where a loop watched it, writes would not wait, and a slow terminal would break what is drawn on it."""
    heard: list[str] = []

    async def whole() -> None:
        with pressed(heard.append):
            os.write(terminal, b"a\x1b[Bq")
            await eventually(lambda: len(heard) == 3)
            assert os.get_blocking(sys.stdin.fileno())

    loop.run(whole())
    assert heard == ["a", "down", "q"]


def test_an_error_of_the_hearer_does_not_make_it_deaf(terminal: int) -> None:
    heard: list[str] = []

    def hear(key: str) -> None:
        heard.append(key)
        if key == "a":
            raise OSError("the terminal was slow")

    async def whole() -> None:
        with pressed(hear):
            os.write(terminal, b"a")
            await eventually(lambda: heard)
            os.write(terminal, b"b")
            await eventually(lambda: len(heard) == 2)

    loop.run(whole())
    assert heard == ["a", "b"]


def test_what_a_terminal_sends_has_names() -> None:
    assert [*named("x\x1b[5~\t\x7f\r\x1b\x01é")] == ["x", "page up", "tab", "erase", "enter", "escape", "é"]
