"""One contract for every keeper of a lease: in memory, in a Redis, a witness, etcd, its fake, and a fake of Kubernetes' API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shoal.errors import LeaseUnreachable
from shoal.leadership.candidate import Candidate
from shoal.leadership.clock import elapsed
from shoal.leadership.lease import Grant, Holder, Lease
from tests.support.keepers import PLACES, Place

Scenario = Callable[[Place], Awaitable[None]]
Run = Callable[[Scenario], None]
A, B = "10.0.0.1:7420", "[fd00::2]:7420"


@pytest.fixture(params=[pytest.param(name, marks=[] if name == "memory" else [pytest.mark.real]) for name in PLACES])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a scenario at a keeper of its own. One that hangs fails."""

    async def in_place(scenario: Scenario) -> None:
        place: Place = PLACES[request.param](tmp_path)
        try:
            async with asyncio.timeout(60):
                await place.start()
                await scenario(place)
        finally:
            await place.close()

    return lambda scenario: asyncio.run(in_place(scenario))


async def taken(lease: Lease, address: str = A) -> Grant:
    """The grant, as soon as the keeper gives it: one that knows nothing waits first."""
    while True:
        try:
            if (grant := await lease.acquire(address)) is not None:
                return grant
        except LeaseUnreachable:
            pass
        await asyncio.sleep(0.02)


def test_one_has_it_and_the_other_sees_who(run: Run):
    async def scenario(place: Place) -> None:
        a, b = place.lease(), place.lease()
        assert await b.holder() is None
        before = elapsed()
        grant = await taken(a)
        assert grant.term == 1 and before < grant.until <= elapsed() + a.duration
        assert await b.acquire(B) is None
        assert await b.holder() == await a.holder() == Holder(A, 1)
        assert await b.renew() is None
        await b.release()
        assert await a.holder() == Holder(A, 1)
        await a.close()
        await b.close()

    run(scenario)


def test_renewals_keep_it_past_its_duration(run: Run):
    async def scenario(place: Place) -> None:
        a, b = place.lease(), place.lease()
        grant = await taken(a)
        end = elapsed() + 2.5 * a.duration
        while elapsed() < end:
            renewed = await a.renew()
            assert renewed is not None and renewed.term == grant.term and renewed.until > grant.until
            assert await b.acquire(B) is None
            grant = renewed
            await asyncio.sleep(a.duration / 10)
        await a.close()
        await b.close()

    run(scenario)


def test_without_renewals_another_gets_it_after_the_grant_and_under_a_higher_term(run: Run):
    async def scenario(place: Place) -> None:
        a, b = place.lease(), place.lease()
        mine = await taken(a)
        await b.acquire(B)
        theirs = await taken(b, B)
        assert elapsed() >= mine.until
        assert theirs.term > mine.term
        assert await a.renew() is None
        await a.release()
        assert await a.acquire(A) is None
        assert await a.holder() == Holder(B, theirs.term)
        await a.close()
        await b.close()

    run(scenario)


def test_who_releases_it_gives_it_up_at_once(run: Run):
    async def scenario(place: Place) -> None:
        a, b = place.lease(30.0), place.lease(30.0)
        first = await asyncio.wait_for(_waited(place, a), 50)
        await a.release()
        assert await a.renew() is None
        assert await b.holder() is None
        second = await b.acquire(B)
        assert second is not None and second.term > first.term
        await a.release()
        assert await b.renew() is not None
        await a.close()
        await b.close()

    run(scenario)


async def _waited(place: Place, lease: Lease) -> Grant:
    """A grant of a long lease: the wait of a keeper that knows nothing is got over with a short one."""
    short = place.lease()
    await taken(short)
    await short.release()
    await short.close()
    return await taken(lease)


def test_the_same_head_gets_it_again_under_a_new_term(run: Run):
    """Its answer may have been lost."""

    async def scenario(place: Place) -> None:
        a = place.lease()
        first = await taken(a)
        second = await a.acquire(A)
        assert second is not None and second.term > first.term
        renewed = await a.renew()
        assert renewed is not None and renewed.term == second.term
        await a.close()

    run(scenario)


def test_clusters_have_leases_of_their_own(run: Run):
    async def scenario(place: Place) -> None:
        reef, lagoon = place.lease(), place.lease(cluster="lagoon")
        assert (await taken(reef)).term == (await taken(lagoon, B)).term == 1
        assert await lagoon.holder() == Holder(B, 1)
        await reef.close()
        await lagoon.close()

    run(scenario)


def test_of_many_at_once_one_gets_it(run: Run):
    async def scenario(place: Place) -> None:
        leases = [place.lease(5.0) for _ in range(8)]
        first = await asyncio.wait_for(_waited(place, leases[0]), 50)
        await leases[0].release()
        grants = await asyncio.gather(*(lease.acquire(f"10.0.0.{i}:7420") for i, lease in enumerate(leases)))
        again = await asyncio.gather(*(lease.acquire(f"10.0.0.{i}:7420") for i, lease in enumerate(leases)))
        held = [lease for lease in leases if await lease.renew() is not None]
        assert sum(grant is not None for grant in grants) <= 1
        assert len(held) == 1
        assert all(grant.term > first.term for grant in [*grants, *again] if grant is not None)
        for lease in leases:
            await lease.close()

    run(scenario)


def test_a_keeper_that_is_away_is_unreachable_and_remembers_terms(run: Run):
    async def scenario(place: Place) -> None:
        a, b = place.lease(), place.lease()
        first = await taken(a)
        assert await b.acquire(B) is None
        await place.stop()
        for ask in (lambda: a.acquire(A), a.renew, a.holder):
            with pytest.raises(LeaseUnreachable):
                await ask()
        await place.again()
        second = await taken(b, B)
        assert second.term > first.term
        assert elapsed() >= first.until
        await a.close()
        await b.close()

    run(scenario)


def test_a_leader_whose_keeper_restarts_quickly_leads_on(run: Run):
    """Also where the keeper forgot everything: the running grant says that there is no other."""

    async def scenario(place: Place) -> None:
        a, b = place.lease(20.0), place.lease(20.0)
        first = await asyncio.wait_for(_waited(place, a), 50)
        assert await b.acquire(B) is None
        await place.stop()
        await place.again()
        renewed = None
        while renewed is None:
            try:
                assert await b.acquire(B) is None
                renewed = await a.renew()
                assert renewed is not None
            except LeaseUnreachable:
                await asyncio.sleep(0.05)
        assert renewed.term == first.term and renewed.until > first.until
        assert await b.acquire(B) is None
        assert await b.holder() == Holder(A, first.term)
        await a.close()
        await b.close()

    run(scenario)


def test_two_candidates_take_turns(run: Run):
    async def scenario(place: Place) -> None:
        leases = [place.lease(), place.lease()]
        candidates = [Candidate(lease, address) for lease, address in zip(leases, (A, B), strict=True)]
        terms: list[int] = []
        turns = [asyncio.ensure_future(_in_turn(candidate, candidates, terms)) for candidate in candidates]
        await asyncio.gather(*turns)
        assert terms == sorted(set(terms)) and len(terms) == 4
        for candidate, lease in zip(candidates, leases, strict=True):
            await candidate.close()
            await lease.close()

    run(scenario)


async def _in_turn(candidate: Candidate, all: list[Candidate], terms: list[int]) -> None:
    for _ in range(2):
        grant = await candidate.lead()
        assert [c for c in all if c.leads(elapsed())] in ([candidate], [])
        terms.append(grant.term)
        await candidate.resign()
