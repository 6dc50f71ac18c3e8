"""A trained model that is larger than memory: the same text as with all of it held, from one node and two, over damage and loss."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.config import KvType, Precision
from shoal.executor.cost import model_cost
from shoal.models.weights import GgufWeights
from tests.support import chats, upcycled
from tests.support.chats import disturbed
from tests.support.cluster import Cluster, Process, cluster, until
from tests.support.control_groups import group
from tests.support.streamed import damage

pytestmark = [pytest.mark.real, pytest.mark.slow]

SKY = [{"role": "user", "content": "Why is the sky blue?"}]
STORY = [{"role": "user", "content": "Write a long story about a sailor and two whales, in many words."}]
SHORT, LONG = 24, 40
MIB = 1 << 20
CONTEXT = ("--context", "1024")
ROOM = "470MiB"
"""Of which the process, its buffers and the grammars of the last node take most: about a tenth of the weights are held."""


def said(made: Cluster) -> list[str]:
    return [chats.answer(made, SKY, SHORT), chats.answer(made, STORY, LONG)]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Path:
    return upcycled.mixtral(smollm2, "perturbed")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of packed files that most clusters here use."""
    folder = tmp_path_factory.mktemp("packed")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """Another one. Large files are not kept when a test is over."""
    folder = tmp_path / "packed"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def right(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is said by a node that holds everything."""
    with cluster(tmp_path_factory.mktemp("held")) as made:
        made.up("--model", str(model), "--nodes", "1", "--memory", "3GiB", *CONTEXT)
        made.until_ready()
        return said(made)


def up(made: Cluster, model: Path, packed: Path | str, *flags: str) -> None:
    made.up("--model", str(model), "--nodes", "1", "--memory", ROOM, *CONTEXT, *flags, SHOAL_PACKED_CACHE=str(packed))


@pytest.fixture(scope="module")
def made(model: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node that streams."""
    with cluster(tmp_path_factory.mktemp("streamed")) as made:
        up(made, model, packed)
        made.until_ready()
        yield made


def files(packed: Path) -> dict[str, int]:
    """When each was written."""
    return {f"{file.parent.name}/{file.name}": file.stat().st_mtime_ns for file in sorted(packed.glob("*/*"))}


def test_one_node_says_the_same(made: Cluster, packed: Path, right: list[str]) -> None:
    assert len(files(packed)) == 31
    assert said(made) == right
    made.until_idle()


def test_damaged_files_are_made_again_and_the_stream_goes_on(made: Cluster, packed: Path, right: list[str]) -> None:
    before = files(packed)
    damaged = [name for name in before if name.endswith(("layer-0007.packed", "layer-0020.packed"))]
    for name in damaged:
        damage(packed / name)
    assert said(made) == right
    after = files(packed)
    assert {name for name in before if after[name] != before[name]} == set(damaged)
    made.until_idle()
    assert "Traceback" not in made.story()


def test_three_nodes_say_the_same_and_the_stream_goes_on_from_two_when_one_is_killed(
    model: Path, fresh: Path, right: list[str], tmp_path: Path
) -> None:
    with cluster(tmp_path) as made:
        made.serve("--min-nodes", "3", "--spread", *CONTEXT, "--model", str(model))
        for i in range(3):
            made.join("--name", f"n{i}", "--memory", ROOM, "--packed-cache", str(fresh))
        made.until_ready()
        layers = made.layers()
        first = min(layers, key=lambda name: layers[name])
        assert disturbed(made, first, STORY, LONG) == right[1]
        made.until_spread(2)
        assert said(made) == right
        assert files(fresh), "one of the two streams"
        made.until_idle()
        assert "Traceback" not in made.story()


def test_a_stage_copies_what_another_one_has_packed(model: Path, fresh: Path, right: list[str], tmp_path: Path) -> None:
    with cluster(tmp_path) as made:

        def join(name: str) -> Process:
            code = until(lambda: (found := re.findall(r"pairing code (\S+),", made.head.said)) and found[-1], made.story)
            flags = ("--memory", ROOM, "--packed-cache", str(fresh / name))
            return made.join("--name", name, "--code", code, *flags, SHOAL_CACHE=str(tmp_path / name))

        made.serve("--host", "0.0.0.0", "--spread", *CONTEXT, "--model", str(model))
        first = join("n0")
        made.until_ready()
        first.until_said("other nodes may copy 31 files of packed weights from here")
        second = join("n1")
        second.until_said("serving layers")
        made.until_ready()
        assert said(made) == right
        assert re.search(r"copied (\d+) of \1 files of packed weights", second.said)
        assert "packing" not in second.said
        assert "Traceback" not in made.story()


def test_another_start_finds_the_files_and_keeps_to_its_memory_page_cache_included(
    made: Cluster, model: Path, packed: Path, right: list[str], tmp_path: Path
) -> None:
    """In a control group that allows no more. Of --memory no use was made of what is kept for the process of grammars."""
    memory, before = 640 << 20, files(packed)
    with group({"memory.limit_in_bytes": f"{memory}", "memory.max": f"{memory}"}, "memory") as limited, cluster(tmp_path) as other:
        other.serve(*CONTEXT, "--model", str(model))
        address = f"127.0.0.1:{other.control_port}"
        node = other.join_from(limited.entering, address, "--name", "n0", "--memory", f"{memory}", "--packed-cache", str(packed))
        other.until_ready()
        assert said(other) == right
        assert files(packed) == before
        (weights,) = re.findall(r"serving layers 0-29: ([\d.]+) MiB of weights", node.said)
        assert 150 < float(weights) < 400, "a part of 425 MiB is held"
        cost = model_cost(GgufWeights(model).spec, None, Precision.AUTO, KvType.BF16, 512)
        assert float(weights) * MIB < limited.peak < memory - cost.last_bytes


# What is lacking


def refused(made: Cluster) -> str:
    assert made.head.wait() != 0
    assert "Traceback" not in made.head.said
    return " ".join(made.head.said.split())


def test_without_packed_files_a_model_larger_than_memory_is_refused(model: Path, tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        up(made, model, "none")
        assert "not enough memory for the model: 779.7 MiB needed" in refused(made)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_without_room_is_told_and_the_model_runs(model: Path, small_disk: Path, right: list[str], tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        up(made, model, small_disk)
        made.head.until_said("the disk is full")
        made.until_ready()
        told = " ".join(made.head.said.split())
        assert f"the disk is full: {small_disk}" in told
        assert "--packed-cache" in told
        assert list(small_disk.glob("*/*")) == []
        assert chats.answer(made, SKY, SHORT) == right[0]


# Another model


def test_files_are_made_anew_for_a_model_that_changed(smollm2: Path, fresh: Path, tmp_path: Path) -> None:
    model = fresh / "model.gguf"
    shutil.copy(upcycled.mixtral(smollm2, "slices"), model)
    answers: list[str] = []

    def start(turn: str) -> dict[str, int]:
        (tmp_path / turn).mkdir()
        with cluster(tmp_path / turn) as made:
            up(made, model, fresh)
            made.until_ready()
            answers.append(chats.answer(made, SKY, 8))
        return files(fresh)

    first = start("first")
    os.utime(model, (1, 1))
    changed = start("changed")
    assert len(changed) == 2 * len(first)
    assert first.items() <= changed.items()
    assert answers[0] == answers[1]
