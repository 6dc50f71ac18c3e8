"""What a process may use of its machine: control groups of both versions, as files; and real ones, where this process may make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shoal import allowance
from shoal.config import NodeSettings, default_threads
from shoal.executor.measure import usable_memory
from tests.support.cluster import cluster
from tests.support.control_groups import Group, group

GIB = 1 << 30
NONE_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def eight_processors_and_16_gib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.keywords:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12 * GIB, total=16 * GIB))


class Tree:
    """A machine's /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path, groups: str, mounts: str) -> None:
        self.root = root
        self.put("proc/self/cgroup", groups)
        self.put("proc/self/mountinfo", mounts)

    def put(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


def v2(root: Path, path: str = "/a/b") -> Tree:
    (root / "sys/fs/cgroup" / path.strip("/")).mkdir(parents=True)
    return Tree(root, f"0::{path}", "35 24 0:29 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate")


def v1(root: Path, path: str = "/docker/abc", top: str = "/") -> Tree:
    mounts = [f"{40 + i} 24 0:{30 + i} {top} /sys/fs/cgroup/{c} ro - cgroup cgroup rw,{c}" for i, c in enumerate(("cpu,cpuacct", "memory"))]
    return Tree(root, f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::{path}", "\n".join(mounts))


# Memory


def test_without_limits_the_machine_is_what_there_is(tmp_path: Path) -> None:
    assert allowance.memory(tmp_path) == allowance.Memory(12 * GIB, 16 * GIB)
    assert allowance.usable_memory(tmp_path) == 9 * GIB
    assert allowance.processors(tmp_path) == allowance.Processors(8)
    tree = v2(tmp_path)
    tree.put("sys/fs/cgroup/a/b/memory.max", "max")
    tree.put("sys/fs/cgroup/a/b/memory.high", "max")
    tree.put("sys/fs/cgroup/a/b/cpu.max", "max 100000")
    assert allowance.memory(tmp_path) == allowance.Memory(12 * GIB, 16 * GIB)
    assert allowance.processors(tmp_path) == allowance.Processors(8)


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
@pytest.mark.parametrize("place", ["a/b", "a"])
def test_a_limit_of_version_2_less_what_is_in_use_and_not_to_be_had_back(tmp_path: Path, name: str, place: str) -> None:
    tree = v2(tmp_path)
    tree.put(f"sys/fs/cgroup/{place}/{name}", 512 << 20)
    tree.put(f"sys/fs/cgroup/{place}/memory.current", 300 << 20)
    tree.put(f"sys/fs/cgroup/{place}/memory.stat", f"anon 1\ninactive_file {150 << 20}\nactive_file {50 << 20}\nshmem 7")
    found = allowance.memory(tmp_path)
    assert (found.available, found.total) == (412 << 20, 512 << 20)
    assert found.source == f"a limit of 512.0 MiB ({tmp_path}/sys/fs/cgroup/{place}/{name})"
    assert allowance.usable_memory(tmp_path) == 309 << 20


@pytest.mark.parametrize(
    ("path", "top", "folder"),
    [
        ("/docker/abc", "/", "docker/abc"),  # on the machine itself
        ("/docker/abc", "/docker/abc", ""),  # in a container without a namespace for groups
        ("/docker/abc/inner", "/docker/abc", "inner"),
        ("/", "/", ""),  # in one with
        ("/docker/elsewhere", "/", ""),  # what is mounted has no such group
        ("/../sibling", "/", ""),
    ],
)
def test_a_limit_of_version_1_wherever_the_group_is_mounted(tmp_path: Path, path: str, top: str, folder: str) -> None:
    tree = v1(tmp_path, path, top)
    home = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", NONE_V1)
    tree.put(f"{home}/memory.limit_in_bytes", 512 << 20)
    tree.put(f"{home}/memory.usage_in_bytes", 100 << 20)
    tree.put(f"{home}/memory.stat", f"inactive_file 1\ntotal_inactive_file {20 << 20}\ntotal_active_file {10 << 20}")
    found = allowance.memory(tmp_path)
    assert (found.available, found.total) == (442 << 20, 512 << 20)
    assert found.source.endswith(f"{home}/memory.limit_in_bytes)")


def test_a_limit_above_what_a_container_of_version_1_sees(tmp_path: Path) -> None:
    tree = v1(tmp_path, "/", "/")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", NONE_V1)
    tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", 1 << 20)
    tree.put("sys/fs/cgroup/memory/memory.stat", f"hierarchical_memory_limit {GIB}")
    assert allowance.memory(tmp_path).total == GIB
    assert allowance.memory(tmp_path).available == GIB - (1 << 20)


def test_the_tightest_of_nested_limits_counts(tmp_path: Path) -> None:
    tree = v2(tmp_path, "/a/b/c")
    for place, limit, used in (("a", 4 * GIB, 3 * GIB), ("a/b", 3 * GIB, GIB), ("a/b/c", 8 * GIB, 0)):
        tree.put(f"sys/fs/cgroup/{place}/memory.max", limit)
        tree.put(f"sys/fs/cgroup/{place}/memory.current", used)
    found = allowance.memory(tmp_path)
    assert found.available == GIB
    assert found.source.endswith("/a/memory.max)")


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    tree = v2(tmp_path)
    tree.put("sys/fs/cgroup/a/b/memory.max", GIB)
    tree.put("sys/fs/cgroup/a/b/memory.current", GIB + 4096)
    assert allowance.memory(tmp_path).available == 0


def test_both_versions_at_once(tmp_path: Path) -> None:
    """As systemd's hybrid mode has it: version 2 without controllers beside version 1."""
    tree = v1(tmp_path, "/a")
    mounts = (tmp_path / "proc/self/mountinfo").read_text() + "50 24 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    tree.put("proc/self/mountinfo", mounts)
    tree.put("sys/fs/cgroup/unified/a/cgroup.procs", 1)
    tree.put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", GIB)
    tree.put("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", 200000)
    tree.put("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", 100000)
    assert allowance.memory(tmp_path).total == GIB
    assert allowance.processors(tmp_path).usable == 2


def test_files_that_are_no_numbers_limit_nothing(tmp_path: Path) -> None:
    tree = v2(tmp_path)
    for name, text in (("memory.max", "lots"), ("memory.high", ""), ("cpu.max", "x y"), ("memory.stat", "what is this\n\n")):
        tree.put(f"sys/fs/cgroup/a/b/{name}", text)
    tree.put("proc/self/mountinfo", (tmp_path / "proc/self/mountinfo").read_text() + "\n\nnot a mount\n1 - \n")
    assert allowance.memory(tmp_path) == allowance.Memory(12 * GIB, 16 * GIB)
    assert allowance.processors(tmp_path) == allowance.Processors(8)


# Processors


@pytest.mark.parametrize(("quota", "usable"), [(50_000, 1), (100_000, 1), (150_000, 1), (200_000, 2), (350_000, 3), (900_000, 8)])
def test_a_quota_is_rounded_down_to_whole_processors(tmp_path: Path, quota: int, usable: int) -> None:
    two, one = v2(tmp_path / "2"), v1(tmp_path / "1")
    two.put("sys/fs/cgroup/a/cpu.max", f"{quota} 100000")  # of the group above
    one.put("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", quota)
    one.put("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", 100_000)
    one.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    one.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100_000)
    for tree, file in ((two, "cpu.max"), (one, "cpu.cfs_quota_us")):
        found = allowance.processors(tree.root)
        assert found.usable == usable
        assert found.source == "" if usable == 8 else found.source.startswith(f"a quota of {quota / 100_000:g} processors (")
        assert usable == 8 or found.source.endswith(f"/{file})")


def test_the_processors_that_a_process_is_kept_to_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5})
    found = allowance.processors(tmp_path)
    assert (found.usable, "3 of 8" in found.source) == (3, True)
    tree = v2(tmp_path)
    tree.put("sys/fs/cgroup/a/b/cpu.max", "400000 100000")
    assert allowance.processors(tmp_path).usable == 3


def test_a_system_without_affinity_counts_its_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert allowance.processors(tmp_path) == allowance.Processors(8)


# Who asks


def test_a_node_offers_what_its_group_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tree = v2(tmp_path)
    tree.put("sys/fs/cgroup/a/b/memory.max", 512 << 20)
    tree.put("sys/fs/cgroup/a/b/cpu.max", "100000 100000")
    whole = allowance.memory.__defaults__, allowance.processors.__defaults__, allowance.usable_memory.__defaults__
    for function in (allowance.memory, allowance.processors, allowance.usable_memory):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    assert usable_memory(NodeSettings()) == 384 << 20
    assert (default_threads(), NodeSettings().compute_threads) == (1, 1)
    assert usable_memory(NodeSettings(memory="1GiB")) == GIB  # who says so is believed, and warned
    assert "more memory was promised than there is" in capsys.readouterr().out
    assert whole == ((Path("/"),),) * 3


# A real group


@pytest.fixture
def half_a_gib_and_one_processor() -> Iterator[Group]:
    files = {"memory.limit_in_bytes": str(512 << 20), "memory.max": str(512 << 20), "cpu.max": "100000 100000"}
    files |= {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    with group(files, "memory", "cpu") as made:
        yield made


@pytest.mark.real
@pytest.mark.slow
def test_in_a_real_group_doctor_names_the_limits_and_a_node_keeps_to_them(
    half_a_gib_and_one_processor: Group, tmp_path: Path, smollm2: Path
) -> None:
    inside = half_a_gib_and_one_processor.entering
    done = subprocess.run([*inside, sys.executable, "-m", "shoal", "doctor", "--json"], capture_output=True, text=True, check=False)
    checks = {check["check"]: check["result"] for check in json.loads(done.stdout)}
    assert "of 512.0 MiB: a limit of 512.0 MiB (/sys/fs/cgroup/" in checks["memory"]
    assert checks["processors"].startswith("1: ") or psutil.cpu_count() == 1
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", "2", "--spread", "--context", "512", "--slots", "2")
        made.start("join", f"127.0.0.1:{made.control_port}", "--name", "small", "--journal", "0", before=inside)
        made.start("join", f"127.0.0.1:{made.control_port}", "--name", "large", "--memory", "1GiB", "--journal", "0")
        made.until_ready()
        listed = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
        assert listed.wait() == 0, listed.describe()
        (node,) = [node for node in json.loads(listed.said)["nodes"] if node["name"] == "small"]
        assert node["threads"] == 1
        assert 100 << 20 < node["memory_bytes"] <= 384 << 20
        assert node["last_layer"] is not None  # it runs some
        assert "Paris" in made.texts("The capital of France is")[0]
