"""`plan` says what is held and what a token reads where these differ: only a model with experts leaves weights unread."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from shoal.cli import inspect
from shoal.config import EngineSettings
from shoal.errors import ConfigError, NotEnoughMemory
from shoal.executor import kept_plans
from shoal.executor.machine_profile import MachineProfile
from shoal.executor.measure import Speed
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.hardware_format import measured, parse
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
