"""`plan` says what is held and what a token reads where these differ: only a model with experts leaves weights unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cli import inspect
from shoal.config import EngineSettings
from shoal.executor.measure import Speed
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from tests.support import tiny

GIB = 1 << 30
ATTENTION = Matrices(GIB // 64, GIB // 32)
DENSE = LayerCost(ATTENTION + Matrices(GIB // 8, GIB // 4), 1024, 4096)
SPARSE = LayerCost(ATTENTION, 1024, 4096, experts=ExpertsCost(16, 2, Matrices(GIB // 64, GIB // 32)))


def planned(model: Path, layer: LayerCost, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    cost = ModelCost((layer,) * 12, Matrices(GIB // 4, GIB // 4), 4096, GIB // 8)
    monkeypatch.setattr(inspect, "model_cost", lambda *description: cost)
    monkeypatch.setattr(inspect, "measure", lambda threads: Speed(20e9, 400e9))
    inspect.plan(EngineSettings(), str(model), ["3GiB", "3GiB"], 1, as_json)
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
