"""The disk is measured where weights are, and nothing stays there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.executor import disk_speed
from shoal.executor.disk_speed import file_system


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "_FILE", 1 << 25)
    monkeypatch.setattr(disk_speed, "READ", 1 << 20)


def test_every_figure_is_there_and_the_file_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "file_system", lambda folder: "ext4")
    found = disk_speed.disk_speed(tmp_path / "packed", 0.05)
    assert min(found.bytes_per_second, found.alone, found.small, found.checked) > 0
    assert found.seconds >= 0
    assert list((tmp_path / "packed").iterdir()) == []


def test_the_processor_computes_while_large_reads_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "file_system", lambda folder: "ext4")
    calls: list[str] = []
    disk_speed.disk_speed(tmp_path, 0.05, lambda: (calls.append(threading.current_thread().name), time.sleep(0.001)))
    assert set(calls) == {"computing beside reads"}
    assert all(thread.name not in calls for thread in threading.enumerate()), "it goes on when all is measured"


def test_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "file_system", lambda folder: "tmpfs")
    with pytest.raises(ConfigError, match="in memory"):
        disk_speed.disk_speed(tmp_path)


def test_a_full_disk_is_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "file_system", lambda folder: "ext4")
    monkeypatch.setattr(disk_speed, "_SPARE", 1 << 60)
    with pytest.raises(ConfigError, match="free"):
        disk_speed.disk_speed(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="the system lists no mounts")
def test_the_innermost_mount_says_what_a_folder_is_on() -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/")) not in ("", "proc")


def test_a_sample_is_taken_from_the_largest_packed_file(tmp_path: Path) -> None:
    assert disk_speed.sampled_disk(tmp_path / "none") is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "layer-0000.packed").write_bytes(bytes(1 << 20))
    assert disk_speed.sampled_disk(tmp_path) is None, "too small to say anything"
    (tmp_path / "model" / "layer-0001.packed").write_bytes(bytes(17 << 20))
    found = disk_speed.sampled_disk(tmp_path, 0.02)
    assert found is not None
    assert found > 0
