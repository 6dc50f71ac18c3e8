"""A real Prometheus scrapes a real cluster, one of whose nodes is killed in the middle of an answer; every panel of the dashboard then has
something to show, and no rule asks for what is not there."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest

from tests.support import gguf_families, tiny_families
from tests.support.cluster import served, until
from tests.support.dashboard import queries
from tests.support.prometheus import binary, prometheus, promtool
from tests.support.scraped import scraped

pytestmark = [pytest.mark.slow]

LAYERS, VOCABULARY, TOKENS = 6, 512, 400
ELSEWHERE = "Experts on other machines and on disk"
"""A row for clusters that have such."""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_experts_per_tok": 2, "n_routed_experts": 4, "first_k_dense_replace": 1}
    built = tiny_families.model("glm4 moe", vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **changes)
    return gguf_families.write(built, tmp_path_factory.mktemp("tiny") / "tiny.gguf", tokenizer=gguf_families.vocabulary(VOCABULARY))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_panel_has_something_to_show(mixture: Path, tmp_path: Path, workers: str) -> None:
    """workers: of the API."""
    binary("prometheus")
    flags = ("--model", str(mixture), "--precision", "fp32", "--heartbeat", "0.2", "--api-workers", workers)
    with served(tmp_path, 2, *flags) as made, prometheus(tmp_path / "prometheus", f"127.0.0.1:{made.port}") as seen:
        until(lambda: seen.query('shoal_events_total{kind="lost"}'))  # what happens before the first look is in no rate
        asked: list[int] = []  # tokens of answers
        enough = threading.Event()

        def ask() -> None:
            while not enough.is_set():
                asked.append(made.complete([4 + len(asked), 5], TOKENS, ignore_eos=True).json()["usage"]["completion_tokens"])

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: len(asked) > 2 and made.metric("sequences_running") == 1, made.story)
        made.nodes[0].popen.kill()
        until(lambda: scraped(made.http.get("/metrics").text).value("interruption_seconds_count", cause="lost") == 1, made.story)
        made.join("--name", "n2")
        made.until_spread(2)
        more = len(asked) + 3
        until(lambda: len(asked) > more, made.story)
        enough.set()
        asking.join()
        assert made.complete("not tokens", tokens=-1).status_code == 400
        text = made.http.get("/metrics").text
        assert promtool("check", "metrics", stdin=text) == ""
        found = scraped(text)
        assert found.value("requests_total", outcome="accepted") == found.value("answers_total", outcome="complete") == len(asked)
        assert found.value("requests_total", outcome="400") == 1
        assert found.value("time_to_first_token_seconds_count") == found.value("answer_seconds_count") == len(asked)
        assert found.value("queue_seconds_count") == len(asked)
        assert found.value("inter_token_seconds_count") == sum(asked) - len(asked)
        assert found.value("interruption_part_seconds_total", cause="lost", part="load") > 0
        nodes = {labels["node"] for name, labels in found.series if name.startswith("shoal_") and "node" in labels}
        assert nodes == {"n1", "n2"}  # n0 is forgotten
        for query in queries():
            if query.row == ELSEWHERE:
                continue
            values = until(lambda query=query: seen.query(query.filled("2m")), lambda query=query: f"{query} has nothing to show")
            assert any(map(math.isfinite, values.values())), (query, values)
        # up to a quarter of what it is
        median = next(iter(seen.query("histogram_quantile(0.5, sum by (le) (shoal_stage_compute_seconds_bucket))").values()))
        mean = found.value("stage_compute_seconds_sum", node="n1") / found.value("stage_compute_seconds_count", node="n1")
        assert mean / 20 < median < mean * 20
        for group in seen.get("rules")["groups"]:
            for rule in group["rules"]:
                assert (rule["health"], rule.get("lastError", "")) in (("ok", ""), ("unknown", "")), rule
                assert rule["state"] == "inactive" or rule["name"] == "ShoalNodeFlapping", rule
