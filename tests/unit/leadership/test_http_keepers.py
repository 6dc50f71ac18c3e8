"""The leases over HTTP: what etcd and Kubernetes answer besides a lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from shoal.errors import ConfigError, LeaseUnreachable
from shoal.leadership import etcd_url
from shoal.leadership.etcd import EtcdLease
from shoal.leadership.kubernetes import KubernetesLease
from shoal.service_account import ServiceAccount
from tests.support.clock import Clock
from tests.support.fake_etcd import FakeEtcd
from tests.support.fake_kubernetes import FakeKubernetes

A, B = "10.0.0.1:7420", "10.0.0.2:7420"
pytestmark = pytest.mark.real


@pytest.fixture
def etcd() -> Iterator[FakeEtcd]:
    server = FakeEtcd("shoal", "p@ss")
    server.start()
    yield server
    server.stop()


def test_etcd_with_accounts(etcd: FakeEtcd):
    async def run() -> None:
        lease = EtcdLease(etcd_url.parse(f"etcd://shoal:p%40ss@127.0.0.1:{etcd.port}"), "reef")
        assert (await lease.acquire(A)) is not None
        etcd.tokens.clear()  # they expire
        assert (await lease.renew()) is not None
        await lease.close()
        for account in ("", "shoal:wrong@"):
            lease = EtcdLease(etcd_url.parse(f"etcd://{account}127.0.0.1:{etcd.port}"), "reef")
            with pytest.raises(ConfigError, match="refuses this head") as refused:
                await lease.acquire(A)
            assert "wrong" not in str(refused.value)
            await lease.close()

    asyncio.run(run())


def test_a_member_of_etcd_that_is_away_is_passed_over():
    etcd = FakeEtcd()
    etcd.start()

    async def run() -> None:
        lease = EtcdLease(etcd_url.parse(f"etcd://127.0.0.1:1,127.0.0.1:{etcd.port}"), "reef")
        grant = await lease.acquire(A)
        assert grant is not None and grant.term == 1
        await lease.close()

    try:
        asyncio.run(run())
    finally:
        etcd.stop()


def test_a_key_that_was_deleted_in_etcd_is_a_lease_lost():
    etcd = FakeEtcd()
    etcd.start()

    async def run() -> None:
        a, b = (EtcdLease(etcd_url.parse(etcd.url), "reef") for _ in range(2))
        assert await a.acquire(A) is not None
        etcd.keys = {key: kv for key, kv in etcd.keys.items() if kv["lease"] == "0"}
        grant = await b.acquire(B)
        assert grant is not None and grant.term == 2
        assert await a.renew() is None
        assert await b.renew() is not None
        await a.close()
        await b.close()

    try:
        asyncio.run(run())
    finally:
        etcd.stop()


@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(404, text="{}"), httpx.Response(200, json=[])])
def test_what_is_not_etcd_is_told(answer: httpx.Response):
    async def run() -> None:
        lease = EtcdLease(etcd_url.parse("etcd://10.0.0.9"), "reef", transport=httpx.MockTransport(lambda request: answer))
        with pytest.raises(LeaseUnreachable, match="not etcd"):
            await lease.acquire(A)
        await lease.close()

    asyncio.run(run())


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[FakeKubernetes]:
    server = FakeKubernetes()
    server.start()
    (tmp_path / "token").write_text(server.token)
    yield server
    server.stop()


def test_a_lease_of_kubernetes_is_free_when_the_observer_has_seen_no_change(kubernetes: FakeKubernetes, tmp_path: Path):
    """Whatever the times in it say, which another machine's clock wrote."""

    async def run() -> None:
        api, clock = ServiceAccount(kubernetes.url, tmp_path), Clock(1000.0)
        a = KubernetesLease(api, "shoal-reef", "default")
        b = KubernetesLease(api, "shoal-reef", "default", now=clock)
        assert await a.acquire(A) is not None
        kubernetes.leases["shoal-reef"]["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
        assert await b.acquire(B) is None
        clock.now += 9.9
        assert await b.acquire(B) is None
        assert await a.renew() is not None
        clock.now += 9.9
        assert await b.acquire(B) is None  # it has just seen the renewal
        clock.now += 10.0
        grant = await b.acquire(B)
        assert grant is not None and grant.term == 2
        assert await a.renew() is None
        assert kubernetes.leases["shoal-reef"]["spec"]["holderIdentity"].startswith(f"{B}_")
        await a.close()
        await b.close()

    asyncio.run(run())


class Between(httpx.AsyncBaseTransport):
    """Reaches a fake, and calls `before` once ahead of the next request that changes something."""

    def __init__(self, server: FakeKubernetes) -> None:
        self._server = server
        self.before: Callable[[], object] = lambda: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            before, self.before = self.before, lambda: None
            before()
        body = json.loads(request.content) if request.content else None
        status, said = self._server.answer(request.method, request.url.path, {"Authorization": request.headers["authorization"]}, body)
        return httpx.Response(status, json=said)


def test_of_two_heads_that_see_a_free_lease_of_kubernetes_the_first_to_write_has_it(kubernetes: FakeKubernetes, tmp_path: Path):
    async def run() -> None:
        way, clock = Between(kubernetes), Clock(1000.0)
        api = ServiceAccount(kubernetes.url, tmp_path)
        a = KubernetesLease(api, "shoal-reef", "default", now=clock, transport=way)
        other = {"holderIdentity": f"{B}_0123456789abcdef", "leaseDurationSeconds": 10, "leaseTransitions": 7}
        made = {"metadata": {"name": "shoal-reef"}, "spec": other}
        way.before = lambda: kubernetes._stored("shoal-reef", made)  # after it was read: there was none
        assert await a.acquire(A) is None
        assert await a.acquire(A) is None  # it sees it for the first time
        clock.now += 20.0  # it expires
        way.before = lambda: kubernetes._stored("shoal-reef", {**kubernetes.leases["shoal-reef"], "spec": {**other, "leaseTransitions": 8}})
        assert await a.acquire(A) is None
        assert kubernetes.conflicts == 2 and kubernetes.leases["shoal-reef"]["spec"]["holderIdentity"].startswith(B)
        assert await a.acquire(A) is None  # it is as long as new
        clock.now += 20.0
        grant = await a.acquire(A)
        assert grant is not None and grant.term == 9
        way.before = lambda: kubernetes._stored(
            "shoal-reef", {**kubernetes.leases["shoal-reef"], "spec": {**other, "leaseTransitions": 10}}
        )
        with pytest.raises(LeaseUnreachable, match="at the same time"):
            await a.renew()
        assert kubernetes.leases["shoal-reef"]["spec"]["leaseTransitions"] == 10
        assert await a.renew() is None
        await a.close()

    asyncio.run(run())


def test_a_grant_of_kubernetes_counts_from_before_it_was_asked_for(kubernetes: FakeKubernetes, tmp_path: Path):
    async def run() -> None:
        way, clock = Between(kubernetes), Clock(1000.0)
        a = KubernetesLease(ServiceAccount(kubernetes.url, tmp_path), "shoal-reef", "default", now=clock, transport=way)

        def slowly() -> None:
            clock.now += 2.0

        for ask in (lambda: a.acquire(A), a.renew):
            way.before, began = slowly, clock.now
            grant = await ask()
            assert grant is not None and grant.until == began + a.duration
        await a.close()

    asyncio.run(run())


def test_labels_that_somebody_adds_stay(kubernetes: FakeKubernetes, tmp_path: Path):
    async def run() -> None:
        a = KubernetesLease(ServiceAccount(kubernetes.url, tmp_path), "shoal-reef", "default")
        assert await a.acquire(A) is not None
        kubernetes.leases["shoal-reef"]["metadata"]["labels"] = {"team": "search"}
        assert await a.renew() is not None
        assert kubernetes.leases["shoal-reef"]["metadata"]["labels"] == {"team": "search"}
        await a.close()

    asyncio.run(run())


def test_a_service_account_that_may_not_is_told_what_it_needs(kubernetes: FakeKubernetes, tmp_path: Path):
    async def run() -> None:
        a = KubernetesLease(ServiceAccount(kubernetes.url, tmp_path), "shoal-reef", "default")
        (tmp_path / "token").write_text("another token")
        with pytest.raises(ConfigError, match="get, create and update on leases of coordination"):
            await a.acquire(A)
        (tmp_path / "token").write_text(kubernetes.token)  # it is read anew
        assert await a.acquire(A) is not None
        await a.close()

    asyncio.run(run())


def test_a_pod_without_a_service_account_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        KubernetesLease(ServiceAccount("http://127.0.0.1:1", tmp_path), "shoal-reef")
