"""How much nodes have to do, as the head counts it."""

from __future__ import annotations

import pytest

from shoal.control.messages import ExpertWork, Heartbeat, PipelineReport
from shoal.discovery.topology import NodeLoad
from shoal.node.loads import WINDOW, Loads


def worked(computed: float, rows: int = 0, queued: int = 0) -> Heartbeat:
    work = ExpertWork(frames=rows // 2, rows=rows, queued=queued, computed=computed)
    return Heartbeat(pipelines=[PipelineReport(expert_work=[work])])


def test_a_worker_is_busy_for_the_share_of_the_window_in_which_it_computed():
    loads = Loads()
    for second in range(31):
        loads.heard("w", worked(second * 0.25), second)
    assert loads.of("w").busy == 0.25
    for second in range(31, 31 + int(WINDOW) + 1):
        loads.heard("w", worked(7.5), second)
    assert loads.of("w").busy == 0


def test_a_stage_is_busy_by_the_traces_of_its_steps():
    loads = Loads()
    loads.heard("s", Heartbeat(pipelines=[PipelineReport(steps=1)]), 0.0)
    for half in range(1, 11):
        loads.ran("s", 0.3)
        loads.heard("s", Heartbeat(pipelines=[PipelineReport(steps=1 + half)]), half / 2)
    assert (loads.of("s").busy, loads.of("s").steps) == (0.6, 11)


def test_what_a_heartbeat_says_is_passed_on_with_memory_rounded():
    loads = Loads()
    beat = worked(0.0, rows=12, queued=3)
    beat.resident, beat.pipelines[0].steps = (37 << 20) + 12345, 4
    loads.heard("w", beat, 0.0)
    assert loads.of("w") == NodeLoad(steps=4, frames=6, rows=12, queue=3, resident=32 << 20)


@pytest.mark.parametrize("computed", [[5.0, 0.0], [0.0, 9.0]])
def test_counts_that_begin_anew_or_are_impossible_stay_a_share(computed: list[float]):
    loads = Loads()
    for second, seconds in enumerate(computed):
        loads.heard("w", worked(seconds), float(second))
    assert 0 <= loads.of("w").busy <= 1


def test_a_node_of_which_nothing_was_heard_or_that_is_forgotten_has_no_load():
    loads = Loads()
    loads.ran("w", 3.0)
    assert loads.of("w") == NodeLoad()
    loads.heard("w", worked(1.0, rows=5), 0.0)
    assert loads.of("w").rows == 5
    loads.forget("w")
    assert loads.of("w") == NodeLoad()


def test_balance_is_among_the_workers_and_about_the_window():
    loads = Loads()
    for second in range(3):
        loads.heard("a", worked(0.0, rows=1000 + 30 * second), second)
        loads.heard("b", worked(0.0, rows=10 * second), second)
        loads.heard("stage", Heartbeat(pipelines=[PipelineReport(steps=second)]), second)
    assert loads.balance(["a", "b", "stage", "unknown"]) == {"a": 1.5, "b": 0.5}
    assert loads.balance(["b"]) == {"b": 1.0}
    for second in range(3, 3 + int(WINDOW) + 2):
        loads.heard("a", worked(0.0, rows=1060), second)
        loads.heard("b", worked(0.0, rows=20), second)
    assert loads.balance(["a", "b"]) == {"a": 1.0, "b": 1.0}
