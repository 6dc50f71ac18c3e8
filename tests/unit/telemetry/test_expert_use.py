"""Which experts are used, and how evenly, as Prometheus reads it."""

from __future__ import annotations

import math
from dataclasses import asdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from shoal.control import messages as control
from shoal.telemetry.expert_use import evenness, peak
from tests.support.metered import Metered

counts = st.lists(st.integers(0, 2**63), min_size=2, max_size=64).filter(any)


@given(counts)
def test_evenness_is_the_entropy_of_the_shares_over_the_most_there_can_be(rows: list[int]) -> None:
    shares = [n / sum(rows) for n in rows if n]
    entropy = -math.fsum(share * math.log(share) for share in shares if share)
    assert 0 <= evenness(rows) <= 1
    assert evenness(rows) == pytest.approx(entropy / math.log(len(rows)), abs=1e-9)


@given(st.integers(1, 64), st.integers(1, 2**50))
def test_equal_use_is_even(experts: int, rows: int) -> None:
    assert evenness([rows] * experts) == pytest.approx(1)


@given(st.integers(2, 64), st.integers(1, 2**50), st.data())
def test_the_use_of_one_alone_is_not(experts: int, rows: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(0, experts - 1))
    assert evenness([rows * (expert == used) for expert in range(experts)]) == pytest.approx(0)


@given(counts, st.randoms(use_true_random=False))
def test_it_does_not_matter_which_experts_they_are(rows: list[int], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert evenness(shuffled) == pytest.approx(evenness(rows))


def read(made: Metered) -> dict[str, dict[tuple[str, ...], float]]:
    """By name and labels: layer, then expert."""
    out: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(made.text()):
        if family.name.startswith("shoal_expert"):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in ("layer", "expert") if name in sample.labels)
                out.setdefault(sample.name, {})[labels] = sample.value
    return out


def test_a_dense_model_has_neither() -> None:
    assert read(Metered("m", {})) == {}


def test_every_expert_is_listed_before_it_is_used() -> None:
    found = read(Metered("m", {1: 2, 3: 2}))
    assert found == {"shoal_expert_rows_total": {("1", "0"): 0, ("1", "1"): 0, ("3", "0"): 0, ("3", "1"): 0}}


def test_what_nodes_report_is_added_up() -> None:
    made = Metered("m", {1: 2, 3: 2})
    for layer, rows in [(1, [3, 0]), (3, [1, 1]), (1, [1, 4])]:
        assert made.pipeline.experts.add(layer, rows)
    found = read(made)
    assert found["shoal_expert_rows_total"] == {("1", "0"): 4, ("1", "1"): 4, ("3", "0"): 1, ("3", "1"): 1}
    assert found["shoal_expert_evenness"] == pytest.approx({("1",): 1, ("3",): 1})


@pytest.mark.parametrize(("layer", "rows"), [(0, [1, 1]), (0, []), (2, [1, 1]), (1, [1]), (1, [1, 1, 1]), (1, [])])
def test_what_does_not_fit_the_model_is_not_added(layer: int, rows: list[int]) -> None:
    made = Metered("m", {1: 2})
    before = made.text()
    assert not made.pipeline.experts.add(layer, rows)
    assert made.text() == before


def test_reads_of_all_nodes_are_added_up_and_absent_where_nothing_is_read() -> None:
    made = Metered("m", {1: 2})
    assert not any(name in made.text() for name in ("shoal_prefetch", "shoal_expert_cache", "shoal_expert_read"))
    for counts in ({"hits": 7, "misses": 2, "bytes_read": 2**41}, {"hits": 1, "ahead": 3, "ahead_used": 2}):
        made.pipeline.experts.add_reads(asdict(control.ExpertReads(**counts)))
    families = text_string_to_metric_families(made.text())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    expected = {"expert_cache_hits": 8, "expert_cache_misses": 2, "expert_read_bytes": 2**41, "prefetch_read": 3, "prefetch_used": 2}
    assert {name: found[f"shoal_{name}_total"] for name in expected} == expected
    assert found["shoal_prefetch_wasted_total"] == 0


@pytest.mark.parametrize(("rows", "expected"), [([4, 4, 4, 4], 1), ([8, 0, 0, 0], 4), ([6, 2, 2, 2], 2), ([7], 1)])
def test_the_busiest_expert_is_measured_against_the_mean(rows: list[int], expected: float) -> None:
    made = Metered("m", {0: len(rows), 1: 2})
    assert made.pipeline.experts.add(0, rows)
    assert read(made)["shoal_expert_busiest"] == {("0",): expected}


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=64).filter(any))
def test_the_busiest_is_between_even_and_alone(rows: list[int]) -> None:
    assert 1 - 1e-9 <= peak(rows) <= len(rows) * (1 + 1e-9)


def test_accuracy_is_the_share_of_guesses_that_came_true_and_absent_without_any() -> None:
    made = Metered("m", {1: 2})
    made.pipeline.experts.add_reads(asdict(control.ExpertReads(hits=3)))
    assert "shoal_prefetch_accuracy" not in made.text()
    for guesses, right in [(6, 6), (4, 1)]:
        made.pipeline.experts.add_reads(asdict(control.ExpertReads(guesses=guesses, guesses_right=right)))
    assert 'shoal_prefetch_accuracy{model="m",replica="1"} 0.7\n' in made.text()


def test_a_worker_is_forgotten_whole() -> None:
    made = Metered("m", {1: 2})
    empty = made.text()
    made.pipeline.work("w", asdict(control.ExpertWork(frames=2, rows=9, calls=1, queued=3, computed=0.5)))
    made.nodes.busy.set(0.25, "w")
    made.nodes.balance.set(1.5, "w")
    text = made.text()
    expected = {"worker_rows_total": 9.0, "worker_queued_frames": 3.0, "worker_computed_seconds_total": 0.5}
    assert all(f'shoal_{name}{{model="m",node="w",replica="1"}} {value}' in text for name, value in expected.items())
    assert 'shoal_worker_balance{node="w"} 1.5' in text
    assert 'shoal_node_busy{node="w"} 0.25' in text
    made.all.forget("w")
    assert made.text() == empty
