"""What a node tells of its experts adds up to what they computed, whenever it is asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.control import messages as control
from shoal.executor.store import RowCounts
from shoal.node.expert_report import ExpertReport
from shoal.weights.expert_reads import ExpertReads


def rows(**layers: list[int]) -> dict[int, RowCounts]:
    return {int(layer[1:]): np.array(counts, np.uint64) for layer, counts in layers.items()}


def told(report: list[control.ExpertRows]) -> dict[int, list[int]]:
    return {counted.layer: counted.rows for counted in report}


def test_only_what_came_since_and_only_layers_where_something_came() -> None:
    report = ExpertReport()
    assert told(report.due(rows(l1=[2, 0], l2=[0, 0]), 0)) == {1: [2, 0]}
    assert told(report.due(rows(l1=[2, 0], l2=[1, 3], l4=[0, 5]), 10)) == {2: [1, 3], 4: [0, 5]}
    assert report.due(rows(l1=[2, 0], l2=[1, 3], l4=[0, 5]), 20) == []


def test_at_most_once_in_five_seconds_but_at_once_after_a_pause() -> None:
    report = ExpertReport()
    assert report.due(rows(l0=[0, 0]), 0) == []
    assert told(report.due(rows(l0=[1, 0]), 0.5)) == {0: [1, 0]}
    assert report.due(rows(l0=[2, 0]), 5.4) == []
    assert told(report.due(rows(l0=[3, 0]), 5.5)) == {0: [2, 0]}
    assert told(report.due(rows(l0=[3, 1]), 60)) == {0: [0, 1]}


def test_what_is_skipped_is_never_told() -> None:
    report = ExpertReport()
    report.due(rows(l0=[1, 0]), 0)
    report.skip(rows(l0=[5, 5]), ExpertReads())
    assert told(report.due(rows(l0=[5, 6]), 10)) == {0: [0, 1]}


@given(st.lists(st.tuples(st.floats(0, 4), st.dictionaries(st.integers(0, 2), st.lists(st.integers(0, 2**40), min_size=3, max_size=3)))))
def test_the_reports_add_up(steps: list[tuple[float, dict[int, list[int]]]]) -> None:
    report, now, computed, total = ExpertReport(), 0.0, rows(), rows()
    for passed, more in [*steps, (5.0, {})]:
        now += passed
        for layer, counts in more.items():
            computed[layer] = computed.get(layer, np.zeros(3, np.uint64)) + np.array(counts, np.uint64)
        for layer, counts in told(report.due(dict(computed), now)).items():
            total[layer] = total.get(layer, np.zeros(3, np.uint64)) + np.array(counts, np.uint64)
    assert {layer: counts.tolist() for layer, counts in total.items()} == {
        layer: counts.tolist() for layer, counts in computed.items() if counts.any()
    }


def test_of_reads_only_what_came_since_and_at_most_once_in_five_seconds() -> None:
    report = ExpertReport()
    assert report.reads_due(ExpertReads(), 0) == []
    assert report.reads_due(ExpertReads(hits=5, ahead=2), 1) == [control.ExpertReads(hits=5, ahead=2)]
    assert report.reads_due(ExpertReads(hits=6, ahead=2), 5.9) == []
    assert report.reads_due(ExpertReads(hits=9, ahead=2, ahead_used=1), 6) == [control.ExpertReads(hits=4, ahead_used=1)]
    report.skip({}, ExpertReads(hits=20, ahead=3, ahead_used=1))
    assert report.reads_due(ExpertReads(hits=21, ahead=3, ahead_used=1), 30) == [control.ExpertReads(hits=1)]
