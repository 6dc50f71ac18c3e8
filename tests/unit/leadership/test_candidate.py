"""The candidate, in simulated time: when it leads, and when it no longer does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from shoal.errors import ConfigError, LeaseUnreachable, LocalProtocolError
from shoal.leadership.candidate import Candidate
from shoal.leadership.lease import Grant
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from tests.support.elections import simulate

DURATION = 10.0


class Place:
    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self.keeper = MemoryKeeper(self.now)

    def lease(self) -> MemoryLease:
        return MemoryLease(self.keeper, DURATION, self.now)

    def candidate(self, address: str = "10.0.0.1:7420") -> Candidate:
        return Candidate(self.lease(), address, self.now, Random(7))


def in_place(scenario: Callable[[Place], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(Place())

    simulate(run())


def test_the_first_leads_and_the_second_waits():
    async def scenario(place: Place) -> None:
        first, second = place.candidate(), place.candidate("10.0.0.2:7420")
        grant = await first.lead()
        assert (grant.term, grant.until) == (1, DURATION)
        assert first.leads(place.now()) and first.term == 1
        waiting = asyncio.ensure_future(second.lead())
        keeping = asyncio.ensure_future(first.until_lost())
        await asyncio.sleep(20 * DURATION)
        assert not waiting.done() and not keeping.done()
        assert first.leads(place.now()) and not second.leads(place.now())
        assert second.term is None
        await first.resign()
        assert not first.leads(place.now())
        assert (await waiting).term == 2
        assert await keeping == "it resigned"

    in_place(scenario)


def test_without_renewals_it_leads_until_the_margin_and_no_longer():
    async def scenario(place: Place) -> None:
        candidate = place.candidate()
        await candidate.lead()
        assert candidate.leads(DURATION * 0.9 - 0.001)
        assert not candidate.leads(DURATION * 0.9)

    in_place(scenario)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_keeper_that_is_away_ends_it_before_the_grant_ends(hangs: bool):
    async def scenario(place: Place) -> None:
        lease = place.lease()
        candidate = Candidate(lease, "10.0.0.1:7420", place.now, Random(7))
        await candidate.lead()
        if hangs:
            lease.renew = _stubborn
        else:
            place.keeper.reachable = False
        why = await candidate.until_lost()
        assert place.now() == pytest.approx(DURATION * 0.9)
        assert why.startswith("its lease ended: ") and ("no answer within" if hangs else "cut off") in why
        assert candidate.term is None

    in_place(scenario)


async def _stubborn() -> Grant | None:
    """Never answers, and does not notice that it is cancelled: some clients lose cancellations."""
    for _ in range(3):
        try:
            await asyncio.sleep(1e5)
        except asyncio.CancelledError:
            continue
    return None


def test_a_short_outage_costs_nothing():
    async def scenario(place: Place) -> None:
        candidate = place.candidate()
        await candidate.lead()
        keeping = asyncio.ensure_future(candidate.until_lost())
        for _ in range(5):
            place.keeper.reachable = False
            await asyncio.sleep(DURATION * 0.4)
            place.keeper.reachable = True
            await asyncio.sleep(DURATION)
            assert candidate.leads(place.now()) and not keeping.done()
        assert candidate.term == 1

    in_place(scenario)


def test_a_lease_that_its_keeper_forgot_is_lost():
    async def scenario(place: Place) -> None:
        candidate = place.candidate()
        await candidate.lead()
        place.keeper.tenure.release("head 1", 1)
        assert "another head has it, or nobody" in await candidate.until_lost()
        assert not candidate.leads(place.now())

    in_place(scenario)


def test_a_lost_answer_does_not_keep_a_head_from_leading():
    async def scenario(place: Place) -> None:
        lease = place.lease()
        await lease.acquire("10.0.0.1:7420")
        grant = await Candidate(lease, "10.0.0.1:7420", place.now).lead()
        assert grant.term == 2 and place.now() == 0

    in_place(scenario)


def test_an_answer_that_comes_too_late_is_no_grant():
    async def scenario(place: Place) -> None:
        lease = place.lease()
        jump = 0.0
        candidate = Candidate(lease, "10.0.0.1:7420", lambda: place.now() + jump)
        plain = lease.acquire

        async def slept(address: str) -> Grant | None:  # the machine sleeps while the answer is under way
            nonlocal jump
            grant = await plain(address)
            jump += DURATION if not jump else 0.0
            return None if grant is None else Grant(grant.term, grant.until if grant.term == 1 else grant.until + jump)

        lease.acquire = slept
        assert (await candidate.lead()).term == 2
        assert candidate.leads(place.now() + jump)

    in_place(scenario)


def test_a_renewal_that_comes_after_the_end_does_not_revive_it():
    async def scenario(place: Place) -> None:
        lease = place.lease()
        jump = 0.0
        candidate = Candidate(lease, "10.0.0.1:7420", lambda: place.now() + jump)
        await candidate.lead()

        async def slept() -> Grant | None:
            nonlocal jump
            jump += DURATION
            return Grant(1, place.now() + jump + DURATION)

        lease.renew = slept
        assert "this process was stopped" in await candidate.until_lost()
        assert not candidate.leads(place.now() + jump)

    in_place(scenario)


def test_a_refused_password_is_told_at_once():
    async def scenario(place: Place) -> None:
        lease = place.lease()

        async def refused(address: str) -> Grant | None:
            raise ConfigError("the keeper refuses the password")

        lease.acquire = refused
        with pytest.raises(ConfigError, match="refuses the password"):
            await Candidate(lease, "10.0.0.1:7420", place.now).lead()

    in_place(scenario)


def test_who_does_not_lead_has_nothing_to_lose():
    async def scenario(place: Place) -> None:
        with pytest.raises(LocalProtocolError):
            await place.candidate().until_lost()

    in_place(scenario)


def test_resigning_without_the_keeper_says_so_and_ends_it_all_the_same():
    async def scenario(place: Place) -> None:
        candidate = place.candidate()
        await candidate.lead()
        place.keeper.reachable = False
        with pytest.raises(LeaseUnreachable):
            await candidate.resign()
        assert not candidate.leads(place.now())

    in_place(scenario)


def test_who_resigns_does_not_lead_by_what_it_had_asked_for_before():
    """The keeper has granted it and heard of the resignation when the answer comes: by then another head may lead."""

    async def scenario(place: Place) -> None:
        lease = place.lease()
        first, second = Candidate(lease, "10.0.0.1:7420", place.now, Random(7)), place.candidate("10.0.0.2:7420")
        plain = lease.acquire

        async def slow(address: str) -> Grant | None:
            grant = await plain(address)
            await asyncio.sleep(1)
            return grant

        lease.acquire = slow
        leading = asyncio.ensure_future(first.lead())
        await asyncio.sleep(0.5)
        await first.resign()
        assert (await second.lead()).term == 2
        keeping = asyncio.ensure_future(second.until_lost())
        await asyncio.sleep(2 * DURATION)
        assert not leading.done() and not first.leads(place.now()) and second.leads(place.now())
        await second.resign()
        assert (await leading).term == 3
        await keeping

    in_place(scenario)


def test_close_ends_the_requests_under_way():
    async def scenario(place: Place) -> None:
        lease = place.lease()
        ended = False

        async def hanging(address: str) -> Grant | None:
            nonlocal ended
            try:
                await asyncio.sleep(1e6)
            finally:
                ended = True
            return None

        lease.acquire = hanging
        candidate = Candidate(lease, "10.0.0.1:7420", place.now)
        leading = asyncio.ensure_future(candidate.lead())
        await asyncio.sleep(0.1)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await candidate.close()
        assert ended

    in_place(scenario)
