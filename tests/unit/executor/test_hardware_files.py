"""Hardware profiles as files: those that come with shoal, a user's own, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.executor.hardware_files import known_hardware, read_hardware
from shoal.placement.policy import search
from shoal.placement.workload import Workload
from tests.support.plans import moe

GOOD = """
source = "this test"
[[tiers]]
name = "disk"
size = "100GiB"
[[tiers]]
name = "memory"
size = "2GiB"
[[links]]
name = "disk"
bytes_per_second = 1e9
[[devices]]
name = "processor"
tier = "memory"
bytes_per_second = 20e9
flops = { q4 = [[1, 1e11], [64, 4e11]] }
"""


@pytest.mark.parametrize("name", known_hardware())
def test_each_profile_that_comes_with_shoal_can_be_planned_for(name: str):
    hardware = read_hardware(name)
    assert hardware.name == name
    assert search(moe(), hardware, Workload(128, 128, 4)).prediction.tokens_per_second > 0


def test_the_gpus_of_the_literature_and_the_machines_of_two_cores_are_known():
    assert known_hardware() == ["a100", "amx-2c", "h200", "l4", "t4", "zen4-2c"]


def test_faster_gpus_are_predicted_faster():
    speeds = [search(moe(), read_hardware(n), Workload(128, 128, 64)).prediction.tokens_per_second for n in ("t4", "l4", "a100", "h200")]
    assert speeds == sorted(speeds)


def test_a_profile_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    hardware = read_hardware(str(path))
    assert [tier.size for tier in hardware.tiers] == [100 << 30, 2 << 30]
    assert hardware.devices[0].curve("q4").at(1) == 1e11
    same = tmp_path / "mine.json"
    same.write_text(
        '{"source": "this test", "tiers": [{"name": "disk", "size": "100GiB"}, {"name": "memory", "size": "2GiB"}],'
        '"links": [{"name": "disk", "bytes_per_second": 1e9}], "devices": [{"name": "processor", "tier": "memory",'
        '"bytes_per_second": 20e9, "flops": {"q4": [[1, 1e11], [64, 4e11]]}}]}'
    )
    assert read_hardware(str(same)).devices == hardware.devices


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("bytes_per_second = 1e9", "", r"links\[0\].*bytes_per_second|bytes_per_second.*links\[0\]"),
        ("bytes_per_second = 1e9", "bytes_per_second = -1", r"> 0.*links\[0\]\.bytes_per_second"),
        ("bytes_per_second = 1e9", "bytes_per_second = 1e9\nspeed = 2", "unknown field `speed`"),
        ('size = "2GiB"', 'size = "two"', "'two' is not a size"),
        ('size = "2GiB"', 'size = "0GiB"', "'memory' has no room"),
        ('tier = "memory"', 'tier = "ram"', "'ram', which is none of the tiers disk, memory"),
        ("[64, 4e11]", "[1, 4e11]", "rows rise"),
        ("q4 =", "int4 =", "has no speed for any of q4, q4_1, q8, bf16, fp32"),
        ('[[links]]\nname = "disk"\nbytes_per_second = 1e9\n', "", "2 tiers have 1 links between them, not 0"),
        ('source = "this test"', "", "source"),
        ("[[tiers]]", "[[tiers", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(tmp_path: Path, old: str, new: str, fault: str):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=fault) as caught:
        read_hardware(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown hardware 'h20'.*h200.*known are a100, amx-2c"):
        read_hardware("h20")


def test_a_file_that_is_not_there_or_no_object_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hardware(str(tmp_path / "none.toml"))
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hardware(str(path))
