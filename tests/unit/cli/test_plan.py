"""`plan` says what is held and what a token reads where these differ: only a model with experts leaves weights unread."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import inspect
from shoal.config import EngineSettings
from shoal.errors import CapacityError, ConfigError, NotEnoughMemory
from shoal.executor import kept_plans
from shoal.executor.machine_profile import MachineProfile
from shoal.executor.measure import Speed
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.hardware_format import measured, parse
from shoal.placement.moves import Moves
from shoal.placement.profile import Demand, NodeProfile
from shoal.placement.roles import RoleMoves
from tests.support import tiny

GIB = 1 << 30
PROFILE = """
source = "a test"

[measured]
machine = "here"
processor = "any"
instruction_set = "any"
threads = 2
folder = "/packed"
on = "2026-01-31"

[[tiers]]
name = "disk"
size = "1TiB"

[[tiers]]
name = "memory"
size = "2GiB"

[[links]]
name = "disk"
bytes_per_second = 2e9

[[devices]]
name = "processor"
tier = "memory"
bytes_per_second = 20e9

[devices.flops]
q4 = [[1, 400e9]]
"""
ATTENTION = Matrices(GIB // 64, GIB // 32)
DENSE = LayerCost(ATTENTION + Matrices(GIB // 8, GIB // 4), 1024, 4096)
SPARSE = LayerCost(ATTENTION, 1024, 4096, experts=ExpertsCost(16, 2, Matrices(GIB // 64, GIB // 32)))


def planned(model: Path, layer: LayerCost, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    cost = ModelCost((layer,) * 12, Matrices(GIB // 4, GIB // 4), 4096, GIB // 8)
    monkeypatch.setattr(inspect, "model_cost", lambda *description: cost)
    monkeypatch.setattr(inspect, "measure", lambda threads: Speed(20e9, 400e9))
    inspect.plan(EngineSettings(), str(model), ["3GiB", "3GiB"], 1, "", as_json)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.model("llama"), tmp_path_factory.mktemp("llama"))


def test_experts_are_held_but_not_all_are_read(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = planned(model, SPARSE, False, monkeypatch, capsys)
    assert "weights: 3.4 GiB held, 832.0 MiB read per token" in shown


def test_of_a_dense_model_no_second_figure_is_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "read per token" not in planned(model, DENSE, False, monkeypatch, capsys)


def test_scripts_get_both_figures_of_any_model(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sparse, dense = (json.loads(planned(model, layer, True, monkeypatch, capsys)) for layer in (SPARSE, DENSE))
    assert (sparse["weight_bytes"], sparse["read_bytes_per_token"]) == (3 * GIB + 7 * GIB // 16, 13 * GIB // 16)
    assert dense["weight_bytes"] == dense["read_bytes_per_token"] == sum(stage["weight_bytes"] for stage in dense["stages"])


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(PROFILE)
    return path


def streamed(
    model: Path,
    layer: LayerCost,
    monkeypatch: pytest.MonkeyPatch,
    known: MachineProfile | None,
    given: list[str],
    hardware: str,
    as_json: bool,
) -> None:
    cost = ModelCost((layer,) * 12, Matrices(GIB // 4, GIB // 4), 4096, GIB // 8)
    monkeypatch.setattr(inspect, "model_cost", lambda *description: cost)
    monkeypatch.setattr(inspect, "measure", lambda threads: Speed(20e9, 400e9))
    monkeypatch.setattr(inspect, "remembered", lambda: known)
    monkeypatch.setattr(kept_plans, "cache_dir", lambda: model.parent)
    inspect.plan(EngineSettings(), str(model), given, 1, hardware, as_json)


def of(path: Path) -> MachineProfile:
    values = tomllib.loads(path.read_text())
    found = measured("here", values)
    assert found is not None
    return MachineProfile(parse("here", values), found)


def test_a_model_larger_than_memory_is_planned_with_the_measured_disk(
    model: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed(model, SPARSE, monkeypatch, of(profile), ["2GiB"], "", False)
    shown = capsys.readouterr().out
    for words in (
        "100% of what every token needs",
        "of the experts",
        "the disk is the limit",
        "for one stream",
        "more memory",
        "another node",
    ):
        assert words in shown
    assert "on 2026-01-31, 2 thread(s); the disk of /packed" in shown


def test_scripts_get_the_policy(model: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    streamed(model, SPARSE, monkeypatch, None, [], str(profile), True)
    found = json.loads(capsys.readouterr().out)
    assert found["limit"] == "disk"
    assert sum(found["weight_bytes"].values()) == 3 * GIB + 7 * GIB // 16
    assert 0 < found["expert_share_held"] < 1
    assert found["more_memory"]["memory_bytes"] > 2 * GIB
    assert found["more_memory"]["predicted_tokens_per_second_one"] > found["predicted_tokens_per_second_one"] > 0
    assert found["another_node"]["streams"] is False


def test_without_a_measured_disk_plan_says_how_to_measure_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotEnoughMemory):
        streamed(model, SPARSE, monkeypatch, None, ["2GiB"], "", False)
    assert "shoal doctor --measure" in capsys.readouterr().err


def test_a_profile_is_of_one_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="one machine"):
        streamed(model, SPARSE, monkeypatch, None, ["1GiB", "1GiB"], "zen4-2c", False)


def test_a_profile_that_is_not_there_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'zen4-2c'"):
        streamed(model, SPARSE, monkeypatch, None, [], "zen4-2", False)


def test_several_nodes_that_do_not_hold_the_model_read_it_from_disks_like_this_one(
    model: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["1GiB", "1GiB:0.5"]
    streamed(model, SPARSE, monkeypatch, of(profile), given, "", False)
    text = capsys.readouterr().out
    assert "in memory" in text and "node-2" in text
    assert "weights are read from disk as they are needed: about" in text
    streamed(model, SPARSE, monkeypatch, of(profile), given, "", True)
    values = json.loads(capsys.readouterr().out)
    assert values["predicted_tokens_per_second_full"] > values["predicted_tokens_per_second_one"] > 0


# The ways to run a model with experts over several nodes


def ways(
    model: Path,
    layer: LayerCost,
    given: list[str],
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: MachineProfile | None = None,
    slots: int = 8,
) -> str:
    """One layer is large beside the nodes of these tests: only experts fill what room it leaves."""
    cost = ModelCost((layer,) * 12, Matrices(GIB // 4, GIB // 4), 4096, GIB // 8)
    monkeypatch.setattr(inspect, "model_cost", lambda *description: cost)
    monkeypatch.setattr(inspect, "measure", lambda threads: Speed(20e9, 400e9))
    monkeypatch.setattr(inspect, "remembered", lambda: known)
    inspect.plan(EngineSettings(slots=slots, kv_tokens=1024), str(model), given, 1, "", as_json)
    return capsys.readouterr().out


def chosen_of(text: str) -> dict[str, Any]:
    (chosen,) = [way for way in json.loads(text)["ways"] if way["chosen"]]
    return chosen


def test_where_layers_fit_the_pipeline_is_compared_with_workers(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ways(model, SPARSE, ["3GiB", "3GiB"], False, monkeypatch, capsys)
    table = text[text.index("ways to run it") :].splitlines()
    assert table[1].split("  ")[0] == "way" and "8 at once" in table[1] and "waiting for workers" in table[1]
    assert any(line.startswith("layer pipeline") and "node-1 layers" in line and "node-2 layers" in line for line in table)
    assert any(line.startswith("stages and experts on workers") and "experts" in line and " by workers" in line for line in table)
    assert "streaming from disk: not needed, the layers fit in memory" in table
    assert table[-1] == "chosen: layer pipeline; with experts on workers it is 1.04 times as fast; roles change from 1.1 times on"


def test_a_node_too_small_for_a_layer_holds_experts(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["3.4GiB", "0.35GiB"]
    text = ways(model, SPARSE, given, False, monkeypatch, capsys)
    assert "layer pipeline: the nodes that may run layers have too little memory for it" in text
    assert "streaming from disk: the speed of a disk is not known" in text
    assert text.splitlines()[-1] == "chosen: stages and experts on workers; no other way fits in memory"
    chosen = chosen_of(ways(model, SPARSE, given, True, monkeypatch, capsys))
    assert [stage["node"] for stage in chosen["stages"]] == ["node-1"]
    assert [worker["node"] for worker in chosen["workers"]] == ["node-2"]


def test_workers_are_better_than_a_disk(
    model: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ways(model, SPARSE, ["3.4GiB", "0.35GiB"], False, monkeypatch, capsys, of(profile))
    assert "times as fast as the streaming from disk; all weights are in memory" in text.splitlines()[-1]
    (row,) = [line for line in text.splitlines() if line.startswith("streaming from disk")]
    assert "from disk" in row[len("streaming from disk") :]


def test_scripts_get_every_way(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(ways(model, SPARSE, ["3GiB", "3GiB", "3GiB:0.5"], True, monkeypatch, capsys))
    kinds = [way["way"] for way in found["ways"]]
    assert kinds.count("pipeline") == 1 and kinds.count("workers") >= 3
    for way in found["ways"]:
        read = way["stage_bytes_per_token"] + way["worker_bytes_per_token"] + way["disk_bytes_per_token"]
        assert read == pytest.approx(found["read_bytes_per_token"], abs=3)
        assert bool(way["workers"]) == (way["way"] == "workers")
        if not way["workers"]:
            assert way["waiting_for_workers_ms_per_token"] == way["worker_bytes_per_token"] == 0
    speeds = [way["predicted_tokens_per_second_full"] for way in found["ways"]]
    assert speeds == sorted(speeds, reverse=True)
    (chosen,) = [way for way in found["ways"] if way["chosen"]]
    assert found["stages"] == chosen["stages"] and found["workers"] == chosen["workers"]


def test_the_plan_is_that_of_a_head(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """For nodes that were started with --role auto."""
    chosen = chosen_of(ways(model, SPARSE, ["3.4GiB", "0.35GiB"], True, monkeypatch, capsys))
    moves = Moves(ModelCost((SPARSE,) * 12, Matrices(GIB // 4, GIB // 4), 4096, GIB // 8), Demand.of(8, 1024, 512))
    nodes = [NodeProfile(f"node-{i}", int(memory * GIB), 20e9, 400e9, auto=True) for i, memory in enumerate((3.4, 0.35), 1)]
    placement = RoleMoves(moves).first(nodes, {})
    assert [stage["node"] for stage in chosen["stages"]] == [stage.node for stage in placement.stages]
    assert [worker["experts"] for worker in chosen["workers"]] == [sum(map(len, plan.table)) for plan in placement.workers]


def test_roles_that_are_given_are_kept(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for given, workers in ((["4GiB", "4GiB:experts"], {"node-2"}), (["4GiB:1:experts", "4GiB"], {"node-1"}), (["3GiB:layers"] * 2, set())):
        found = json.loads(ways(model, SPARSE, given, True, monkeypatch, capsys))
        for way in found["ways"]:
            assert {worker["node"] for worker in way["workers"]} <= workers
            assert not {stage["node"] for stage in way["stages"]} & workers
        assert any(way["workers"] for way in found["ways"]) == bool(workers)


@pytest.mark.parametrize("bad", ["4GiB:fast", "4GiB:1:2", "4GiB:1:workers", "4GiB:experts:1"])
def test_what_is_no_node_is_refused(bad: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"write MEMORY\[:SPEED\]\[:ROLE\]"):
        ways(model, SPARSE, ["4GiB", bad], False, monkeypatch, capsys)


def test_experts_are_of_a_model_that_has_some(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="has no experts; leave out ':experts'"):
        ways(model, DENSE, ["4GiB", "4GiB:experts"], False, monkeypatch, capsys)
    with pytest.raises(CapacityError, match="at least one that runs layers"):
        ways(model, SPARSE, ["4GiB:experts"], False, monkeypatch, capsys)
    assert "ways to run it" not in ways(model, DENSE, ["3GiB", "3GiB"], False, monkeypatch, capsys)
