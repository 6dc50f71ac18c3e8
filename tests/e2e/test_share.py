"""Real processes with caches of their own: a model reaches nodes that have no way to its origin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from shoal.models.catalogue import catalogue
from tests.support.cluster import MODEL, Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_INPUT": "1"}


def kept(cache: Path) -> Path:
    return cache / "models" / MODEL / catalogue()[MODEL].file


def fetched(made: Cluster, node: str, source: str) -> float:
    line = f'shoal_fetched_bytes_total{{node="{node}",source="{source}"}} '
    return next((float(row.split()[1]) for row in made.http.get("/metrics").text.splitlines() if row.startswith(line)), -1.0)


@pytest.mark.usefixtures("smollm2")
def test_nodes_without_an_origin_get_the_model_from_the_head(tmp_path: Path) -> None:
    caches = [tmp_path / "one", tmp_path / "two"]
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", "2", "--spread")
        for i, cache in enumerate(caches):
            made.join("--name", f"n{i}", SHOAL_CACHE=str(cache), **NOWHERE)
        made.until_ready()
        assert "Paris" in made.texts("The capital of France is")[0]
        entry = catalogue()[MODEL]
        for i, cache in enumerate(caches):
            assert hashlib.sha256(kept(cache).read_bytes()).hexdigest() == entry.sha256
            until(lambda name=f"n{i}": fetched(made, name, "peers") == entry.size, made.story)
            assert fetched(made, f"n{i}", "origin") == 0
            assert not list(cache.glob("parts/*.part"))
        made.head.end()


@pytest.mark.usefixtures("smollm2")
def test_a_node_that_shares_nothing_asks_the_origin(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        made.serve()
        node = made.join("--name", "alone", "--no-share", SHOAL_CACHE=str(tmp_path / "cache"), **NOWHERE)
        node.until_said("could not be fetched")
        assert not kept(tmp_path / "cache").exists()
