"""Which experts are used, as /metrics of real processes has it: requests, a node that leaves, one that is killed, one that comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import gguf_families, tiny_families
from tests.support.cluster import Cluster, cluster, served, until

pytestmark = [pytest.mark.slow]

VOCABULARY = 288
DENSE, LAYERS, EXPERTS, CHOSEN = 1, 4, 8, 3
"""The first layer has no experts."""

Rows = dict[tuple[int, int], int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"num_experts_per_tok": CHOSEN, "n_routed_experts": EXPERTS, "first_k_dense_replace": DENSE}
    built = tiny_families.model("glm4 moe", vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **changes)
    return gguf_families.write(built, tmp_path_factory.mktemp("tiny") / "tiny.gguf", tokenizer=gguf_families.vocabulary(VOCABULARY))


@pytest.fixture
def made(model: Path, tmp_path: Path) -> Iterator[Cluster]:
    with served(tmp_path, 2, "--model", str(model), "--precision", "fp32") as made:
        yield made


def scraped(made: Cluster) -> tuple[Rows, dict[int, float]]:
    """Rows by layer and expert; evenness by layer."""
    answer = made.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    rows, even = families["shoal_expert_rows"], families.get("shoal_expert_evenness")
    assert rows.type == "counter"
    return (
        {(int(sample.labels["layer"]), int(sample.labels["expert"])): int(sample.value) for sample in rows.samples},
        {int(sample.labels["layer"]): sample.value for sample in even.samples} if even else {},
    )


def asked(made: Cluster, prompt: list[int], tokens: int) -> int:
    """The rows that an answer took: all tokens but the last, which nothing follows."""
    answer = made.complete(prompt, tokens, ignore_eos=True)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert usage["completion_tokens"] == tokens
    return len(prompt) - usage["prompt_tokens_details"]["cached_tokens"] + tokens - 1


class Watch:
    """Sees to it that no count falls."""

    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.seen = dict.fromkeys([(layer, expert) for layer in range(DENSE, LAYERS) for expert in range(EXPERTS)], 0)

    def rows(self) -> Rows:
        now, _ = scraped(self.made)
        assert now.keys() == self.seen.keys()
        assert all(now[key] >= known for key, known in self.seen.items())
        self.seen = now
        return now

    def until_counted(self, rows: int) -> None:
        until(lambda: sum(self.rows().values()) >= rows * CHOSEN * (LAYERS - DENSE), lambda: str(self.seen), every=0.2)
        for layer in range(DENSE, LAYERS):
            assert sum(count for (of, _), count in self.seen.items() if of == layer) == rows * CHOSEN


def test_counts_are_rows_times_chosen_experts_times_layers(made: Cluster) -> None:
    watch = Watch(made)
    assert set(watch.rows().values()) == {0}
    assert scraped(made)[1] == {}
    rows = asked(made, list(range(3, 83)), 12) + asked(made, list(range(100, 107)), 5)
    watch.until_counted(rows)
    even = scraped(made)[1]
    assert even.keys() == set(range(DENSE, LAYERS))
    assert all(0.3 < value < 1 for value in even.values())


def test_no_count_falls_whoever_leaves_and_comes(made: Cluster) -> None:
    watch = Watch(made)
    rows = asked(made, list(range(3, 43)), 8)
    watch.until_counted(rows)

    made.nodes[1].end()  # it asks for its layers to be moved
    until(lambda: made.layers() == {"n0": (0, LAYERS)}, made.story, every=0.1)
    made.until_ready()
    rows += asked(made, list(range(50, 90)), 8)
    watch.until_counted(rows)

    made.join("--name", "n1")
    made.until_spread(2)
    rows += asked(made, list(range(100, 140)), 8)
    watch.until_counted(rows)

    made.nodes[0].popen.kill()
    until(lambda: made.layers() == {"n1": (0, LAYERS)}, made.story, every=0.1)
    made.until_ready()
    rows += asked(made, list(range(150, 190)), 8)
    watch.until_counted(rows)


def test_a_dense_model_has_no_such_metrics(tmp_path: Path) -> None:
    built = tiny_families.model("olmo2", vocab_size=VOCABULARY)
    file = gguf_families.write(built, tmp_path / "tiny.gguf", tokenizer=gguf_families.vocabulary(VOCABULARY))
    with cluster(tmp_path) as made:
        made.up("--nodes", "1", "--model", str(file))
        made.until_ready()
        asked(made, [5, 6, 7], 2)
        assert "shoal_expert" not in made.http.get("/metrics").text
