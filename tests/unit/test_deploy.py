"""What is shipped for Prometheus and Grafana: the rules hold their tests, and nothing asks for a metric or a label that the head does not have."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from shoal.control import messages as control
from shoal.pipeline.timing import StepTiming
from shoal.scheduler.plan import StageTrace
from shoal.telemetry.metrics import ScalingMetrics
from tests.support.dashboard import Query, dashboard, queries
from tests.support.metered import Metered
from tests.support.prometheus import DEPLOY, promtool
from tests.support.scraped import Scraped, scraped

DOCS = Path(__file__).parents[2] / "docs"


def everything() -> str:
    """All metrics that a head can have, as it is asked for them."""
    made = Metered("m", {1: 2})
    nodes, metrics = made.nodes, made.pipeline
    metrics.route(["a"])
    metrics.step(StepTiming(1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, (StageTrace(0.1, 0.1, 0.1, 0.1, 0.1),)), (0.1, 0.1))
    metrics.interruption(1.0, "lost", {"load": 1.0}, 1)
    metrics.journal("a", 1, 2, 3, 4)
    nodes.fetched("a", 1, 2)
    metrics.asks("a", asdict(control.ExpertAsks()))
    metrics.work("a", asdict(control.ExpertWork()))
    metrics.computing("a", asdict(control.ComputeParts()))
    metrics.experts.add(1, [3, 4])
    metrics.experts.add_reads(asdict(control.ExpertReads(guesses=1)))
    made.model.requests.add(1, "chat", "accepted")
    made.all.scaling = ScalingMetrics()
    metrics.waiting_of.set(1, "normal")
    metrics.stage_layers.set(1, "a", "0")
    for gauge in (
        nodes.busy,
        nodes.resident,
        nodes.memory,
        nodes.silence,
        metrics.weights,
        metrics.kv,
        metrics.slowdown,
        nodes.balance,
    ):
        gauge.set(1, "a")
    return made.text()


@pytest.fixture(scope="module")
def all_metrics() -> Scraped:
    return scraped(everything())


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.panel}: {query.legend}")
def test_every_query_asks_for_what_there_is(query: Query, all_metrics: Scraped) -> None:
    assert query.metrics and query.metrics <= all_metrics.labels.keys()
    assert query.labels <= set.union(*(all_metrics.labels[name] for name in query.metrics)), query


def test_a_query_for_something_else_would_be_found(all_metrics: Scraped) -> None:
    query = Query("", "", 'sum by (stage, le) (rate(shoal_nothing{model=~"$model",kind!="x"}[1m]))', "{{node}}")
    assert query.metrics - all_metrics.labels.keys() == {"shoal_nothing"}
    assert query.labels == {"stage", "le", "model", "kind", "node"}
    assert query.filled("1m").count("$") == 0


def rules() -> list[Query]:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)\n\s+expr: (?:\|\n)?(.*?)\n\s+(?:for|labels):", text, re.DOTALL)
    assert len(alerts) == text.count("- alert:")
    annotations = re.split(r"- alert: \w+", text)[1:]
    shown = [" ".join(f"{{{{{name}}}}}" for name in re.findall(r"\$labels\.(\w+)", part)) for part in annotations]
    return [Query("", name, expression, legend) for (name, expression), legend in zip(alerts, shown, strict=True)]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.panel)
def test_every_rule_asks_for_what_there_is(rule: Query, all_metrics: Scraped) -> None:
    assert rule.metrics <= all_metrics.labels.keys()
    assert rule.labels <= set().union(*(all_metrics.labels[name] for name in rule.metrics)), rule


def test_every_rule_has_its_tests() -> None:
    tests = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    quiet, loud = tests.split("everything is wrong")
    for rule in rules():
        assert re.search(rf"alertname: {rule.panel}\b", quiet), rule.panel
        assert re.search(rf"alertname: {rule.panel}\n\s+exp_alerts", loud), rule.panel


def test_the_rules_hold_their_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_the_files_are_right() -> None:
    promtool("check", "config", "prometheus.yml")


def test_the_metrics_keep_to_the_conventions() -> None:
    assert promtool("check", "metrics", stdin=everything()) == ""


def test_the_panels_lie_beside_each_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x, y in itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
    ]
    assert len(set(cells)) == len(cells) and all(x < 24 for x, _ in cells)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels if panel["type"] != "row")


def test_the_page_of_metrics_names_every_one() -> None:
    page = (DOCS / "metrics.md").read_text()
    named = set(re.findall(r"`(shoal_\w+)", page))
    families = set(re.findall(r"^# TYPE (\w+)", everything(), re.MULTILINE))
    assert named == families
