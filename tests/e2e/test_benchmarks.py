"""What benchmarks have in common runs: a cluster of theirs serves, and answers what they ask."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import ours

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("replicas", [{}, {"replicas": 2}])
def test_a_cluster_of_a_benchmark_serves(replicas: dict[str, int]) -> None:
    async def run() -> None:
        async with ours.cluster("smollm2-135m", 2, 1, {"memory": "1GiB"}, **replicas) as cluster:
            assert len(list(cluster.head.engine.copies)) == replicas.get("replicas", 1)
            assert await ours.decode(cluster.head, 2, 4) > 0
            assert await ours.prefill(cluster.head) > 0

    asyncio.run(run())
