"""The head's metrics as Prometheus reads them: percentiles, labels, what is forgotten, what a step costs."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from shoal.observed.event import EventKind
from shoal.pipeline.timing import StepPart, StepTiming
from shoal.pipeline_id import PipelineId
from shoal.request import FinishReason, RequestId, TokenChunk
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.distribution import BOUNDS, Distribution
from shoal.telemetry.metrics import CAUSES, OUTCOMES, ModelMetrics, PipelineMetrics
from shoal.telemetry.token_times import TokenTimes
from tests.support.metered import Metered
from tests.support.scraped import Scraped, scraped

seconds = st.floats(BOUNDS[0], BOUNDS[-1], exclude_min=True)
R = RequestId("r")


def told(made: Metered) -> Scraped:
    return scraped(made.text())


def timing(*traces: StageTrace, parts: Iterable[StepPart] = (), sent: float = 1.0, sampled: int = 1) -> StepTiming:
    return StepTiming(1, sampled, 1e-4, 1e-5, 2e-5, 3e-3, 1e-4, traces, 1, 1, sent, tuple(parts))


def trace(wait: float, compute: float, sample: float = 0.0) -> StageTrace:
    return StageTrace(wait, 1e-5, compute, sample, 1e-5)


# Distributions


def percentile(buckets: list[tuple[str, float]], share: float) -> float:
    """As Prometheus' histogram_quantile has it: straight between a bucket's bounds."""
    wanted = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for name, count in buckets:
        if count >= wanted and count > below:
            high = float(name)
            return low if math.isinf(high) else low + (high - low) * (wanted - below) / (count - below)
        low, below = float(name), count
    raise AssertionError


def test_bounds_rise_evenly_from_hops_to_loads() -> None:
    steps = [b / a for a, b in itertools.pairwise(BOUNDS)]
    assert min(steps) > 1.5 and max(steps) < 1.65
    assert BOUNDS[0] < 1e-4 and BOUNDS[-1] > 100
    assert len({f"{bound:g}" for bound in BOUNDS}) == len(BOUNDS)


@given(st.lists(seconds, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_that_of_the_observations_but_for_a_bucket(values: list[float], share: float) -> None:
    made = Distribution()
    for value in values:
        made.observe(value)
    exact = sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
    assert exact / 1.7 <= percentile(made.buckets(), share) <= exact * 1.7


@given(st.lists(st.floats(), max_size=50))
def test_buckets_and_total_hold_what_can_be_a_duration(values: list[float]) -> None:
    made = Distribution()
    for value in values:
        made.observe(value)
    possible = [value for value in values if 0 <= value < 1e9]
    buckets = made.buckets()
    assert buckets[-1] == ("+Inf", len(possible))
    assert [count for _, count in buckets] == [sum(value <= float(name) for value in possible) for name, _ in buckets]
    assert made.total == pytest.approx(sum(possible))


# Requests and tokens


def test_the_queue_ends_with_the_first_step_and_tokens_follow_each_other_by_choice() -> None:
    queued, between = Distribution(), Distribution()
    times = TokenTimes(queued, between)
    times.begun("answer", [R], 10.0)
    times.step([StepPart(RequestId("other"), 1, 1)], 10.5)
    assert queued.buckets()[-1][1] == 0
    times.step([StepPart(R, 1, 1)], 12.0)
    times.step([StepPart(R, 1, 1)], 13.0)
    assert (queued.buckets()[-1][1], queued.total) == (1, 2.0)
    for at, choice in ((20.0, 0), (21.0, 1), (23.0, 0), (23.5, 1)):
        times.sampled([TokenChunk(R, choice, 7)], at)
    times.sampled([TokenChunk(R, 0, None, finish=FinishReason.LENGTH)], 99.0)  # no token
    assert (between.buckets()[-1][1], between.total) == (2, 5.5)


def test_nothing_is_kept_of_an_answer_that_ended() -> None:
    times = TokenTimes(Distribution(), Distribution())
    times.begun("never ran", [RequestId("a"), RequestId("b")], 0.0)
    times.begun("ran", [R], 0.0)
    times.sampled([TokenChunk(R, 0, 7)], 1.0)
    assert len(times) == 3
    for answer in ("never ran", "ran", "unknown"):
        times.ended(answer)
    times.sampled([TokenChunk(R, 0, 7)], 2.0)
    times.step([StepPart(R, 1, 1)], 2.0)
    assert len(times) == 0


# Steps


def test_a_step_is_counted_in_its_parts() -> None:
    made = Metered()
    made.pipeline.route(["a", "b"])
    made.pipeline.tokens.begun("answer", [R], 0.25)
    made.pipeline.step(timing(trace(0.1, 1.0), trace(0.2, 2.0, 0.5), parts=[StepPart(R, 1, 1)], sampled=3), (0.01, 0.02, 0.03))
    found = told(made)
    assert found.value("generated_tokens_total") == 3
    sums = {
        "hop": {"a": 0.01, "b": 0.02},
        "stage_wait": {"a": 0.1, "b": 0.2},
        "stage_compute": {"a": 1.0, "b": 2.0},
    }
    for name, by in sums.items():
        assert {node: found.value(f"{name}_seconds_sum", node=node) for node in by} == pytest.approx(by)
    whole = {"hop_back": 0.03, "sample": 0.5, "step_flight": 3e-3, "step_head": 2.3e-4, "queue": 0.75}
    assert {name: found.value(f"{name}_seconds_sum") for name in whole} == pytest.approx(whole)
    assert all(found.value(f"{name}_seconds_count") == 1 for name in whole)


def test_a_step_costs_some_dozens_of_calls() -> None:
    """Each takes about 0.1 µs; a decode step takes 3 ms and more."""
    made = Metered()
    made.pipeline.route(["a", "b"])
    made.pipeline.tokens.begun("answer", [R], 0.0)
    step = timing(trace(1e-4, 1e-3), trace(1e-4, 1e-3), parts=[StepPart(R, 1, 1)])
    calls = Counter[str]()
    sys.setprofile(lambda frame, event, what: calls.update([event]))
    try:
        made.pipeline.tokens.sampled([TokenChunk(R, 0, 7)], 1.0)
        made.pipeline.step(step, (1e-4, 1e-4, 1e-4))
    finally:
        sys.setprofile(None)
    assert 10 < calls["call"] + calls["c_call"] < 60


# Interruptions, events


def test_computing_is_told_by_part_over_all_kinds_of_steps() -> None:
    made = Metered()
    for more in (0.0, 0.25):
        made.pipeline.computing("a", {"attention": 1.0 + more, "head": 0.5}, {"attention": 2.0, "head": 0.0})
        found = told(made)
        assert found.value("node_compute_seconds_total", node="a", part="attention") == 3.0 + more
        assert found.value("node_compute_seconds_total", node="a", part="head") == 0.5


def test_interruptions_are_counted_by_cause_and_part() -> None:
    made = Metered()
    made.pipeline.interruption(0.9, "lost", {"load": 0.5, "refill": 0.4}, 70)
    made.pipeline.interruption(0.1, "moved", {"refill": 0.1}, 7)
    found = told(made)
    assert {cause: found.value("interruption_seconds_count", cause=cause) for cause in CAUSES} == {
        **dict.fromkeys(CAUSES, 0),
        "lost": 1,
        "moved": 1,
    }
    assert found.value("interruption_part_seconds_total", cause="lost", part="load") == 0.5
    assert found.value("refilled_tokens_total") == 77


def test_what_may_happen_is_there_before_it_does() -> None:
    """A rate over a counter that appears with its first event misses that event."""
    found = told(Metered())
    assert {kind.value: found.value("events_total", kind=kind.value, model=None) for kind in EventKind} == dict.fromkeys(EventKind, 0)
    assert {outcome: found.value("answers_total", outcome=outcome) for outcome in OUTCOMES} == dict.fromkeys(OUTCOMES, 0)


# Labels


HOSTILE = 'n\\o"d\ne{}[bold]\x1b[31m\u202e'


def test_names_come_back_as_they_are() -> None:
    made = Metered(HOSTILE, {1: 2})
    made.pipeline.route([HOSTILE])
    made.pipeline.step(timing(trace(0.1, 1.0)), (0.01, 0.02))
    made.nodes.busy.set(0.5, HOSTILE)
    of_nodes = {family.name for collector in made.nodes.collectors for family in collector.collect()}
    for family in text_string_to_metric_families(made.text()):
        for sample in family.samples:
            assert sample.labels.get("node", HOSTILE) == sample.labels.get("model", HOSTILE) == HOSTILE
            assert ("model" in sample.labels) == (family.name not in of_nodes)


def test_a_node_that_is_gone_is_forgotten_whole() -> None:
    made = Metered()
    made.pipeline.route(["a"])
    made.pipeline.step(timing(trace(0.1, 1.0)), (0.01, 0.02))
    alone = {name for name, labels in told(made).series if "a" in labels.values()}
    made.pipeline.route(["a", "b"])
    made.pipeline.step(timing(trace(0.1, 1.0), trace(0.1, 1.0)), (0.01, 0.02, 0.03))
    made.pipeline.journal("b", 1, 2, 3, 4)
    made.nodes.fetched("b", 1, 2)
    made.pipeline.computing("b", {"attention": 1.0})
    made.pipeline.stage_layers.set(3, "b", "1")
    nodes, pipeline = made.nodes, made.pipeline
    for gauge in (nodes.busy, nodes.resident, nodes.memory, nodes.silence, pipeline.weights, pipeline.kv, pipeline.slowdown):
        gauge.set(1, "b")
    made.all.forget("b")
    text = made.text()
    assert '"b"' not in text
    assert {name for name, labels in told(made).series if "a" in labels.values()} == alone


@pytest.mark.parametrize("nodes", [1, 20])
def test_series_grow_with_the_nodes_of_the_route_alone(nodes: int) -> None:
    made = Metered()
    names = [f"n{i}" for i in range(nodes)]
    before = len(told(made).series)
    for _ in range(3):  # again and again, in any order
        made.pipeline.route(names := [*reversed(names)])
        made.pipeline.step(timing(*[trace(0.1, 1.0)] * nodes), [0.01] * (nodes + 1))
    assert len(told(made).series) - before == nodes * 3 * (len(BOUNDS) + 3)


# Several models and copies


def test_each_metric_is_told_once_with_the_figures_of_all_copies_and_models() -> None:
    made = Metered("m", {0: 2})
    copy, other = PipelineId("m", 2), PipelineId("n")
    made.all.pipelines[copy], made.all.pipelines[other] = PipelineMetrics(copy, {0: 2}), PipelineMetrics(other, {})
    made.all.models["n"] = ModelMetrics("n")
    for count, metrics in enumerate(made.all.pipelines.values(), 1):
        metrics.route(["a"])
        metrics.step(timing(trace(0.1, 1.0), sampled=count), (0.01, 0.02))
    made.pipeline.experts.add(0, [3, 4])
    made.all.pipelines[copy].experts.add(0, [5, 6])
    lines = made.text().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) == len({line.split()[2] for line in types})
    for text in (made.text(), made.text()):  # what was told once is not told twice the next time
        found = scraped(text)
        assert len({(name, *sorted(labels.items())) for name, labels in found.series}) == len(found.series)
        tokens = {id: found.value("generated_tokens_total", model=id.model, replica=str(id.replica)) for id in made.all.pipelines}
        assert tokens == {PipelineId("m"): 1, copy: 2, other: 3}
        assert found.value("expert_rows_total", replica="2", layer="0", expert="1") == 6
        assert found.value("stage_compute_seconds_sum", model="n", node="a") == 1.0
        assert [found.value("prompt_tokens_total", model=model, replica=None) for model in "mn"] == [0, 0]


def test_a_node_that_is_gone_is_forgotten_by_all_pipelines_and_a_copy_that_is_gone_with_all_its_figures() -> None:
    made = Metered()
    copy = PipelineId("m", 2)
    made.all.pipelines[copy] = PipelineMetrics(copy, {})
    for metrics in made.all.pipelines.values():
        metrics.weights.set(1, "a")
        metrics.weights.set(2, "b")
    made.all.forget("a")
    assert [labels["replica"] for name, labels in told(made).series if name == "shoal_node_weights_bytes"] == ["1", "2"]
    del made.all.pipelines[copy]
    assert 'replica="2"' not in made.text() and 'replica="1"' in made.text()
