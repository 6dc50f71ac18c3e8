"""Nodes that are asked for: of a pool, of Kubernetes over a real socket with TLS, and of Ray by its command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from shoal.errors import ClusterError, ConfigError
from shoal.node.kubernetes_pool import KubernetesPool
from shoal.node.node_source import PoolSource
from shoal.node.ray_pool import RayPool
from shoal.service_account import ServiceAccount
from shoal.serving.node_wish import NodeWish
from shoal.testing.clock import SimulatedLoop
from tests.support.kubernetes_api import KubernetesApi, kubernetes_api


class Pool:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fails = 0

    def count(self, nodes: Collection[str]) -> int:
        return len(nodes)

    async def at_least(self, nodes: int) -> str:
        self.asked.append(nodes)
        if self.fails:
            self.fails -= 1
            raise ClusterError("it is away")
        return ""


def wish(nodes: int, model: str = "a") -> NodeWish:
    return NodeWish(model, nodes, nodes, "much to do")


@dataclass
class Asking:
    pool: Pool = field(default_factory=Pool)

    def __post_init__(self) -> None:
        self.there = 0
        self.source = PoolSource(self.pool, 10, lambda: {f"n{i}" for i in range(self.there)}, rng=Random(1))

    async def wishes(self, *wishes: NodeWish, there: int = 2, seconds: float = 5.0) -> list[int]:
        """What the pool was asked after these wishes."""
        self.there, before = there, len(self.pool.asked)
        for one in wishes:
            self.source.wish(one)
        await asyncio.sleep(seconds)
        return self.pool.asked[before:]


@asynccontextmanager
async def asking() -> AsyncGenerator[Asking]:
    made = Asking()
    running = asyncio.ensure_future(made.source.run())
    try:
        yield made
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def simulated(scenario: object) -> None:
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(scenario)  # pyright: ignore[reportArgumentType]
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_pool_is_asked_for_what_is_there_and_what_is_missing_of_all_models() -> None:
    async def scenario() -> None:
        async with asking() as made:
            assert await made.wishes(wish(0)) == []
            assert await made.wishes(wish(1)) == [3]
            assert await made.wishes(wish(1)) == [], "it is the same"
            assert await made.wishes(wish(2, "b")) == [5]
            assert await made.wishes(wish(1), wish(1, "b"), there=3) == [], "one has come"
            assert await made.wishes(wish(0), wish(0, "b"), there=5) == []
            assert await made.wishes(wish(1), there=3) == [4], "somebody took two away"
            assert await made.wishes(wish(100), there=3) == [10], "no more than it may have"
            assert await made.wishes(seconds=1000) == [10], "it is still missing"

    simulated(scenario())


def test_a_pool_that_fails_is_asked_again_and_says_why() -> None:
    async def scenario() -> None:
        async with asking() as made:
            made.pool.fails = 3
            assert await made.wishes(wish(1), seconds=0.1) == [3] and made.source.trouble == "it is away"
            assert await made.wishes(seconds=60) == [3, 3, 3] and made.source.trouble == ""
            made.pool.fails = 1000
            assert await made.wishes(wish(2), seconds=0.1) == [4] and made.source.trouble == "it is away"
            assert await made.wishes(wish(0), seconds=300) == [] and made.source.trouble == "", "nobody wants it any more"

    simulated(scenario())


# Kubernetes


def asked_of(api: KubernetesApi, nodes: int) -> str:
    async def go() -> str:
        async with kubernetes_api(api):
            return await KubernetesPool("sea-nodes", ServiceAccount(api.url, api.account)).at_least(nodes)

    return asyncio.run(go())


def test_a_stateful_set_gets_more_pods_by_the_accounts_token(tmp_path: Path) -> None:
    api = KubernetesApi(tmp_path)
    assert asked_of(api, 4) == "the StatefulSet sea-nodes gets 4 pods, not 2"
    path = "/apis/apps/v1/namespaces/deep/statefulsets/sea-nodes/scale"
    assert [(one.method, one.path, one.body) for one in api.requests] == [
        ("GET", path, None),
        ("PATCH", path, {"spec": {"replicas": 4}}),
    ]
    assert {one.headers["authorization"] for one in api.requests} == {f"Bearer {api.token}"}
    assert api.requests[1].headers["content-type"] == "application/merge-patch+json"
    assert api.replicas == 4


def test_a_stateful_set_never_gets_fewer(tmp_path: Path) -> None:
    api = KubernetesApi(tmp_path, replicas=6)
    assert "has 6 pods already" in asked_of(api, 4)
    assert api.replicas == 6 and [one.method for one in api.requests] == ["GET"]


def test_a_token_that_was_renewed_is_read_again(tmp_path: Path) -> None:
    async def go() -> None:
        api = KubernetesApi(tmp_path)
        async with kubernetes_api(api):
            pool = KubernetesPool("sea-nodes", ServiceAccount(api.url, api.account))
            api.renew("second")
            await pool.at_least(3)
        assert api.requests[0].headers["authorization"] == "Bearer second"

    asyncio.run(go())


def test_what_may_not_be_done_is_said_in_one_line(tmp_path: Path) -> None:
    api = KubernetesApi(tmp_path, forbidden=True)
    with pytest.raises(ClusterError, match=r"Kubernetes answers 403 to GET .*/scale: not for you; see autoscaling.nodes of the chart"):
        asked_of(api, 4)


def test_a_server_with_another_certificate_learns_no_token(tmp_path: Path) -> None:
    async def go() -> None:
        api, other = KubernetesApi(tmp_path / "a"), KubernetesApi(tmp_path / "b")
        async with kubernetes_api(api):
            with pytest.raises(ClusterError, match=r"does not answer: .*certificate"):
                await KubernetesPool("sea-nodes", ServiceAccount(api.url, other.account)).at_least(3)
        assert not api.requests

    asyncio.run(go())


def test_it_works_in_a_pod_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="works in a pod"):
        ServiceAccount.of_pod("--more-nodes kubernetes")
    with pytest.raises(ConfigError, match=r"cannot read .*namespace, which a pod"):
        KubernetesPool("sea-nodes", ServiceAccount("https://127.0.0.1:1", tmp_path))


def test_nodes_of_the_set_are_those_that_are_named_after_its_pods(tmp_path: Path) -> None:
    pool = KubernetesPool("sea-nodes", ServiceAccount("https://127.0.0.1:1", KubernetesApi(tmp_path).account))
    assert pool.count(["sea-nodes-0", "sea-nodes-12", "sea-nodes-x", "sea-nodes", "other-0", "a-sea-nodes-1"]) == 2


# Ray


def test_ray_is_asked_by_its_command() -> None:
    done = "import sys; assert sys.argv[1:] == ['ray', 'scale', '4', '--at-least', '--cluster', 'reef'], sys.argv"
    assert asyncio.run(RayPool("reef", (sys.executable, "-c", done)).at_least(4)) == "Ray is asked for 4 nodes in all"
    fails = "import sys; print('noise', file=sys.stderr); sys.exit('error: no `shoal ray up` runs a cluster reef')"
    with pytest.raises(ClusterError, match="`shoal ray scale` failed: error: no `shoal ray up` runs a cluster reef"):
        asyncio.run(RayPool("reef", (sys.executable, "-c", fails)).at_least(4))


def test_a_command_that_hangs_ends_with_whoever_waits_for_it() -> None:
    async def go() -> None:
        asked = asyncio.ensure_future(RayPool("reef", (sys.executable, "-c", "import time; time.sleep(600)")).at_least(4))
        await asyncio.sleep(0.3)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(go())
