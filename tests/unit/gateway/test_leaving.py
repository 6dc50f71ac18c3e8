"""Clients that leave: nothing runs for them any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.app import app_of
from tests.support.engine import FakeEngine, says, spoken
from tests.support.http import CHAT, HI, Leaver, ask


def leave(engine: FakeEngine, after: int, *, stuck: bool = False, path: str = CHAT, **fields: Any) -> Leaver:
    """A client that leaves after so many parts; the application returns, and soon nothing runs for it any more."""

    async def go() -> Leaver:
        leaver = Leaver({"messages": HI, **fields}, after, stuck=stuck)
        await leaver.visit(app_of(engine), path)
        await asyncio.sleep(0)  # an abandoned generator is closed by a task of its own
        await asyncio.sleep(0)
        return leaver

    return asyncio.run(go())


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_as_soon_as_the_request_is_sent_cancels(stream: bool) -> None:
    engine = FakeEngine(lambda r: [], hang=True)
    leave(engine, -1, stream=stream)
    assert engine.streams[0].closed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_before_the_first_token_cancels(stream: bool, n: int) -> None:
    engine = FakeEngine(lambda r: [], hang=True)
    leave(engine, 0, stream=stream, n=n)
    assert engine.streams[0].closed


def test_leaving_in_the_middle_cancels() -> None:
    engine = FakeEngine(lambda r: spoken(r, "Hello")[:3], hang=True)
    leaver = leave(engine, 3, stream=True)
    assert engine.streams[0].closed
    assert b"DONE" not in b"".join(m.get("body", b"") for m in leaver.sent)


def test_leaving_while_nothing_more_can_be_sent_cancels() -> None:
    engine = FakeEngine(says("Hello"), hang=True)
    leave(engine, 2, stuck=True, stream=True)
    assert engine.streams[0].closed


def test_an_answer_that_was_read_to_its_end_is_closed() -> None:
    engine = FakeEngine()
    assert ask(engine, stream=True).status_code == 200
    assert engine.streams[0].closed
    assert engine.first_tokens == 1
