"""Properties of elections, in simulated time: two heads never lead at once, terms grow, and somebody leads soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.leadership import etcd_url
from shoal.leadership.etcd import EtcdLease
from shoal.leadership.kubernetes import KubernetesLease
from shoal.leadership.lease import Lease
from shoal.leadership.ledger import WitnessLedger
from shoal.leadership.memory import MemoryKeeper, MemoryLease
from shoal.service_account import ServiceAccount
from tests.support.elections import FarLease, FarServer, Head, LedgerLease, Net, simulate
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_kubernetes import FakeKubernetes

DURATION = 10.0
Now = Callable[[], float]


class Memory:
    def __init__(self, folder: Path, now: Now) -> None:
        self._keeper = MemoryKeeper(now)

    def lease(self, number: int, now: Now, net: Net) -> Lease:
        return FarLease(MemoryLease(self._keeper, DURATION, now), net, now)

    def restart(self) -> None:
        """Of a keeper, which keeps what it has on disk."""


class Witness(Memory):
    def __init__(self, folder: Path, now: Now) -> None:
        self._open = lambda: WitnessLedger(folder / "leases.json", now)
        self._place = [self._open()]

    def lease(self, number: int, now: Now, net: Net) -> Lease:
        return FarLease(LedgerLease(self._place, f"head-{number}", DURATION), net, now)

    def restart(self) -> None:
        self._place[0] = self._open()


class Etcd(Memory):
    def __init__(self, folder: Path, now: Now) -> None:
        self._server = FakeEtcd(now=now)

    def lease(self, number: int, now: Now, net: Net) -> Lease:
        return EtcdLease(etcd_url.parse("etcd://10.0.0.9"), "reef", DURATION, now, FarServer(self._server, net))


class Kubernetes(Memory):
    def __init__(self, folder: Path, now: Now) -> None:
        self._server = FakeKubernetes()
        (folder / "token").write_text(FakeKubernetes.token)
        self._api = ServiceAccount("http://10.0.0.9", folder)

    def lease(self, number: int, now: Now, net: Net) -> Lease:
        return KubernetesLease(self._api, "shoal-reef", "default", DURATION, now, FarServer(self._server, net))


@pytest.mark.parametrize("keeper", [Memory, Witness, Etcd, Kubernetes])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    heads=st.integers(2, 5),
    loss=st.sampled_from([0.0, 0.1, 0.5]),
    delay=st.sampled_from([0.0, 0.05, 1.0, 15.0]),
)
def test_two_heads_never_lead_at_once_and_somebody_leads_soon(
    tmp_path_factory: pytest.TempPathFactory, keeper: type[Memory], seed: int, heads: int, loss: float, delay: float
):
    simulate(_election(tmp_path_factory.mktemp("keeper"), keeper, Random(seed), heads, loss, delay))


async def _election(folder: Path, kind: type[Memory], rng: Random, count: int, loss: float, delay: float) -> None:
    keeper = kind(folder, asyncio.get_running_loop().time)
    nets = [Net(rng, loss, delay) for _ in range(count)]
    heads: list[Head] = []
    for number, net in enumerate(nets):

        def lease(now: Now, number: int = number, net: Net = net) -> Lease:
            return keeper.lease(number, now, net)

        heads.append(Head(number, lease, rng, rng.uniform(-1e6, 1e6), rng.uniform(0.96, 1.04), heads))
    try:
        await _disturbed(keeper, nets, heads, rng)
    finally:
        for head in heads:
            head.stop.running.set()  # what is stopped cannot be cancelled
            head.task.cancel()
        await asyncio.gather(*(head.task for head in heads), return_exceptions=True)


async def _disturbed(keeper: Memory, nets: list[Net], heads: list[Head], rng: Random) -> None:
    for _ in range(rng.randint(5, 30)):
        number = rng.randrange(len(heads))
        if rng.random() < 0.5:  # what matters happens to the one that leads
            number = next((i for i, head in enumerate(heads) if head.leads), number)
        match rng.randrange(9):
            case 0:
                heads[number].stop.running.clear()
            case 1 | 2:
                heads[number].stop.running.set()
            case 3 | 4:
                nets[number].cut = True
            case 5:
                rng.choice(nets).cut = False
            case 6:
                keeper.restart()
            case 7 if heads[number].stop.running.is_set():
                resigning = asyncio.ensure_future(heads[number].candidate.resign())  # one that follows may do so, too
                await _watched(heads, DURATION / 3)
                await asyncio.gather(resigning, return_exceptions=True)
            case _:
                pass
        await _watched(heads, rng.random() * DURATION)
    for head, net in zip(heads, nets, strict=True):
        head.stop.running.set()
        net.cut, net.loss, net.delay = False, 0.0, 0.01
    await _watched(heads, 4 * DURATION)
    assert [head.name for head in heads if head.leads] != []


@pytest.mark.parametrize("keeper", [Memory, Witness, Etcd])
def test_the_margin_covers_a_clock_that_runs_slowly(tmp_path: Path, keeper: type[Memory]):
    """A leader that nobody hears, whose seconds are eight per cent longer, beside many that ask all the time."""

    async def run() -> None:
        place = keeper(tmp_path, asyncio.get_running_loop().time)
        net, rng, heads = Net(Random(1)), Random(2), list[Head]()
        heads.append(Head(0, lambda now: place.lease(0, now, net), rng, 0.0, 0.92, heads))
        await _watched(heads, 2 * DURATION)
        assert heads[0].leads
        net.cut = True
        for number in range(1, 20):
            heads.append(Head(number, lambda now, number=number: place.lease(number, now, Net(rng)), rng, 0.0, 1.0, heads))
        await _watched(heads, 3 * DURATION)
        assert not heads[0].leads and any(head.leads for head in heads)

    simulate(run())


async def _watched(heads: list[Head], seconds: float) -> None:
    """Looks at the heads again and again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        assert len([head.name for head in heads if head.leads]) <= 1
        assert [head.beside for head in heads if head.beside] == []
        terms = [term for head in heads for term in head.terms]
        assert len(set(terms)) == len(terms)
        assert all(head.terms == sorted(head.terms) for head in heads)
        for head in heads:
            if head.task.done():
                head.task.result()
        await asyncio.sleep(0.5)
