"""The profile of this machine: what is written is what is read, and another machine's is not taken for this one's."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ConfigError
from shoal.executor import machine_profile, measure
from shoal.executor.disk_speed import DiskSpeed
from shoal.executor.kernel_speed import ProcessorSpeed
from shoal.executor.machine_profile import measure_hardware, remember, remembered
from shoal.executor.streaming_overhead import StreamingOverhead
from shoal.native import kernels
from shoal.placement.hardware_format import parse

compiled = pytest.mark.skipif(kernels() is None, reason="the kernels are not compiled")
KERNELS = ProcessorSpeed(
    20e9, 2e-6, {"weights": [(1, 30e9), (4, 15e9)], "attention": [(1, 22e9)]}, {"q4": [(1, 150e9), (32, 270e9)], "attention": [(1, 30e9)]}
)
DISK = DiskSpeed(2.5e9, 5e-4, 1.2e9, 1.6e9, 10e9, direct=True)


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr(machine_profile, "kernel_speed", lambda threads, isa: KERNELS)
    monkeypatch.setattr(machine_profile, "disk_speed", lambda folder, computing: DISK)
    monkeypatch.setattr(machine_profile, "streaming_overhead", lambda folder, threads, isa: StreamingOverhead(2e-5, 9e-5))
    return measure_hardware(tmp_path, 2)[0]


@compiled
def test_a_profile_is_read_as_it_was_measured(values: dict[str, Any], tmp_path: Path) -> None:
    path = remember(values, tmp_path / "new" / "hardware.toml")
    found = remembered(path)
    assert found is not None
    processor, disk = found.hardware.devices[0], found.hardware.links[0]
    assert (disk.bytes_per_second, disk.seconds, disk.copies, disk.read_seconds) == (2.5e9, 5e-4, 2.0, 9e-5)
    assert (processor.layer_seconds, processor.chosen_seconds, processor.curve("q4").at(32)) == (2e-6, 2e-5, 270e9)
    assert dict(processor.reading)["weights"].at(4) == 15e9
    assert (found.measured.threads, found.measured.folder) == (2, str(tmp_path))
    assert found.hardware == parse(str(path), tomllib.loads(path.read_text()))
    assert [file.name for file in path.parent.iterdir()] == ["hardware.toml"]


@compiled
@pytest.mark.parametrize("field", ["machine", "processor", "instruction_set"])
def test_the_profile_of_another_machine_is_not_taken(values: dict[str, Any], tmp_path: Path, field: str) -> None:
    values["measured"][field] = "another"
    assert remembered(remember(values, tmp_path / "hardware.toml")) is None


def test_a_machine_that_was_not_measured_has_none(tmp_path: Path) -> None:
    assert remembered(tmp_path / "hardware.toml") is None


def test_a_damaged_profile_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "hardware.toml").write_text("source = ")
    with pytest.raises(ConfigError, match="doctor --measure"):
        remembered(tmp_path / "hardware.toml")


@compiled
def test_without_a_folder_for_weights_there_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_profile, "kernel_speed", lambda threads, isa: KERNELS)
    told: list[str] = []
    values, _ = measure_hardware(None, 1, tell=told.append)
    assert [tier["name"] for tier in values["tiers"]] == ["memory"]
    assert values["links"] == []
    assert [line.split()[0] for line in told] == ["memory", "layers", "q4", "attention"]


@compiled
def test_a_node_takes_the_speed_of_its_disk_from_the_profile(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = remembered(remember(values, tmp_path / "hardware.toml"))
    monkeypatch.setattr(measure, "remembered", lambda: found)
    assert measure.measure(1, packed=tmp_path).disk == 2.5e9
    assert measure.measure(1, packed=tmp_path / "another").disk == 1e9
    assert measure.measure(1).disk == 0
