"""Which head may ask for the lease, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from shoal.errors import ClusterError
from shoal.leadership.candidate import Candidate
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from shoal.node.standby import _OTHERS_FIRST, Standby
from shoal.testing.clock import SimulatedLoop

T = TypeVar("T")


def played(work: Awaitable[T]) -> T:
    async def go() -> T:
        return await work

    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(go())


async def nobody(address: str, link: Any) -> None:
    raise ClusterError("nobody is there")


class Contest:
    def __init__(self) -> None:
        self._time = asyncio.get_running_loop().time
        self.keeper = MemoryKeeper(self._time)

    def head(self, address: str, whole: bool = False, following: str = "", begun: bool = False, **how: Any) -> Standby:
        lease = MemoryLease(self.keeper, 2.0, self._time)
        follower: Any = SimpleNamespace(whole=whole, following=following, begun=begun, follow=nobody)
        return Standby(lease, Candidate(lease, address, self._time, Random(1)), follower, lambda address: cast("Any", None), **how)


@pytest.mark.parametrize(
    ("had", "seconds"),
    [
        ({"whole": True}, 0),
        ({"may_begin": True}, 0),
        ({"may_begin": True, "own": False}, _OTHERS_FIRST),
        ({"may_begin": True, "begun": True}, _OTHERS_FIRST),
        ({"may_begin": True, "begun": True, "whole": True}, 0),
    ],
)
def test_who_has_less_than_all_leads_when_nobody_else_has_for_long(had: dict[str, Any], seconds: float) -> None:
    async def work() -> None:
        before = asyncio.get_running_loop().time()
        assert (await Contest().head("a:1", **had).until_elected()).term == 1
        assert seconds <= asyncio.get_running_loop().time() - before < seconds + 2

    played(work())


@pytest.mark.parametrize("had", [{}, {"begun": True}, {"may_begin": True, "following": "b:1"}, {"may_begin": True, "ready": lambda: False}])
def test_who_must_not_begin_or_follows_without_a_whole_copy_does_not_ask(had: dict[str, Any]) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await Contest().head("a:1", **had).until_elected()

    played(work())


def test_of_a_half_copy_and_a_whole_one_the_whole_one_leads() -> None:
    async def work() -> None:
        contest = Contest()
        half = asyncio.ensure_future(contest.head("a:1", may_begin=True, begun=True).until_elected())
        await asyncio.sleep(20)
        await contest.head("b:1", whole=True).until_elected()
        assert contest.keeper.tenure.address == "b:1" and not half.done()
        half.cancel()

    played(work())
