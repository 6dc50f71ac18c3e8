"""A shard that holds its layers, streams them, and holds them again: the same tokens, counts that never fall, and memory that is given back."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision, RuntimeName
from shoal.errors import ConfigError, CorruptModel, NotEnoughMemory, WeightsUnreadable
from shoal.executor import packed_layers
from shoal.executor.expert_split import RemoteExperts, Split
from shoal.executor.packed_layers import PackedLayers
from shoal.executor.packing import StoredTensors
from shoal.executor.shard import Shard
from shoal.executor.store import WeightStore
from shoal.models.weights import SafetensorsWeights, Weights
from shoal.placement.division import StageSizes, least
from shoal.weights.slot_memory import SlotMemory
from tests.support import mixtures, tiny
from tests.support.descriptors import beneath
from tests.support.shards import Line, Node
from tests.support.streamed import FAULTS, Disk, finder, made, packed, residencies

LAYERS = mixtures.LAYERS
WHOLE = range(LAYERS)
PROMPTS = [tiny.TOKENS[:40], tiny.TOKENS[7:20], tiny.TOKENS[:5]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return mixtures.Maker(tmp_path_factory.mktemp)("mixtral", Precision.Q4).weights


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of packed files. No thread is left, and none of the files is open."""
    before = set(threading.enumerate())
    yield tmp_path / "packed"
    gc.collect()
    assert set(threading.enumerate()) <= before
    assert beneath(tmp_path / "packed") == []


@pytest.fixture(scope="module")
def sizes(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> StageSizes:
    return made(weights, Precision.Q4, tmp_path_factory.mktemp("sizes"))


def line_of(weights: Weights, folder: Path, disk: Disk | None = None, runtime: RuntimeName = RuntimeName.NATIVE) -> Line:
    precision = Precision.Q4 if runtime is RuntimeName.NATIVE else Precision.FP32
    return Line(weights, precision=precision, runtime=runtime, packed=finder(folder, precision, disk))


def begun(line: Line, memory: int = 0) -> Node:
    node = Node(line)
    line.enter([WHOLE], [node], [memory])
    for sequence, prompt in enumerate(PROMPTS):
        line.add(sequence, prompt)
    line.decode(2)
    return node


@pytest.fixture(scope="module")
def undisturbed(weights: Weights) -> Callable[[int], dict[int, list[int]]]:
    """The tokens after so many steps of a line that holds all of its layers."""
    line = Line(weights, precision=Precision.Q4)
    begun(line)

    def after(steps: int) -> dict[int, list[int]]:
        while len(line.tokens[0]) < len(PROMPTS[0]) + 1 + steps:
            line.decode(1)
        return {sequence: line.tokens[sequence][: len(prompt) + 1 + steps] for sequence, prompt in enumerate(PROMPTS)}

    return after


def counted(shard: Shard) -> int:
    return sum(int(rows.sum()) for rows in shard.expert_rows.values())


# From one way to another


def test_held_then_streamed_then_held(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    line = line_of(weights, folder)
    node = begun(line)
    held = node.shard.nbytes
    for turn, memory in enumerate([least(sizes), sizes.total // 2, 0, sizes.total // 3, 0], 1):
        before = node.shard.expert_rows
        line.enter([WHOLE], [node], [memory])
        assert all((node.shard.expert_rows[layer] >= rows).all() for layer, rows in before.items())
        assert node.shard.nbytes == held if not memory else 0 < node.shard.nbytes <= memory
        line.decode(2)
        assert line.tokens == undisturbed(2 + 2 * turn)
    assert line.refilled == [], "keys and values stayed"
    node.shard.close()


def test_counts_are_those_of_layers_that_are_held(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    both = []
    for memory in (0, least(sizes)):
        line = line_of(weights, folder)
        node = begun(line, memory)
        line.enter([WHOLE], [node], [memory and memory + 200_000])
        line.decode(2)
        both.append({layer: rows.tolist() for layer, rows in node.shard.expert_rows.items()})
        node.shard.close()
        assert {layer: rows.tolist() for layer, rows in node.shard.expert_rows.items()} == both[-1]
    assert both[0] == both[1]


def test_counts_are_right_for_whoever_looks_while_a_stage_ends(
    weights: Weights, folder: Path, sizes: StageSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    seen: list[int] = []
    looks = threading.Thread(target=lambda: seen.append(counted(node.shard)))
    plain = WeightStore.remember

    def remember(self: WeightStore, rows: dict[int, Any]) -> None:
        plain(self, rows)
        looks.start()
        looks.join(0.2)  # enough for a look that nothing keeps back

    monkeypatch.setattr(WeightStore, "remember", remember)
    right = counted(node.shard)
    line.enter([WHOLE], [node])
    looks.join()
    assert (seen, counted(node.shard)) == ([right], right)
    node.shard.close()


def test_layers_are_dealt_out_anew_between_nodes_that_stream(
    weights: Weights, folder: Path, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    """One node, two, two others, one: some hold, some stream; what is lost is refilled."""
    line = line_of(weights, folder)
    a, b = begun(line, 150_000), Node(line)
    line.enter([range(3), range(3, 6)], [a, b], [80_000, 80_000])
    line.decode(2)
    line.enter([range(2), range(2, 6)], [a, b], [0, 90_000])
    line.decode(2)
    line.enter([range(4), range(4, 6)], [b, a], [90_000, 70_000])
    line.decode(2)
    line.enter([WHOLE], [b], [150_000])
    line.decode(2)
    assert line.tokens == undisturbed(10)
    assert line.refilled
    for node in (a, b):
        node.shard.close()


def test_the_memory_of_a_stage_is_free_before_the_next_one_takes_its_own(
    weights: Weights, folder: Path, sizes: StageSizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though somebody may still have the stage of the past."""
    taken: list[weakref.ref[Any]] = []
    plain = SlotMemory.__init__

    def counting(self: SlotMemory, slots: int, size: int) -> None:
        plain(self, slots, size)
        taken.append(weakref.ref(self))

    monkeypatch.setattr(SlotMemory, "__init__", counting)
    line = line_of(weights, folder)
    node = begun(line, sizes.total // 2)
    past = node.stage
    first = list(taken)
    taken.clear()
    line.enter([WHOLE], [node], [least(sizes)])
    assert len(taken) > 1
    assert [memory() for memory in first] == [None] * len(first)
    node.shard.close()
    assert [memory() for memory in taken] == [None] * len(taken)
    assert past is not None


def test_a_stage_that_stays_as_it_is_keeps_what_it_holds(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    disk = Disk()
    line = line_of(weights, folder, disk)
    node = begun(line, sizes.total)
    reads = disk.reads
    line.enter([WHOLE], [node], [sizes.total])
    assert disk.reads == reads
    node.shard.close()


def test_a_shard_that_was_closed_streams_again(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    node.shard.close()
    assert node.shard.layers == []
    again = line_of(weights, folder)
    tokens = begun(again, least(sizes))
    assert again.tokens == line.tokens
    tokens.shard.close()


# What is told before anything is lost


def test_a_runtime_that_cannot_stream_says_so(weights: Weights, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    dense = SafetensorsWeights(tiny.saved(tiny.model("llama"), tmp_path / "llama"))
    with pytest.raises(ConfigError, match="cannot stream it; use --runtime native"):
        Node(line_of(dense, folder, runtime=RuntimeName.ONNXRUNTIME)).shard.load(range(3), dense, streamed=True)


def test_a_node_that_may_not_stream_says_so(weights: Weights) -> None:
    with pytest.raises(ConfigError, match="larger than the memory"):
        Node(Line(weights, precision=Precision.Q4)).shard.load(WHOLE, weights, streamed=True)


def test_too_little_memory_leaves_a_shard_that_can_stream_with_more(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    with pytest.raises(NotEnoughMemory):
        node.shard.enter(WHOLE, WHOLE, line.blocks, least(sizes) - 1)
    line.enter([WHOLE], [node], [least(sizes)])
    line.decode(2)
    assert line.tokens == undisturbed(4)
    node.shard.close()


# The files


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.iterdir())}


def test_files_are_made_once(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    for _ in range(2):
        node = begun(line_of(weights, folder), least(sizes))
        node.shard.close()
    names = [*(f"layer-{layer:04d}.packed" for layer in WHOLE), "head.packed"]
    assert sorted(times(folder)) == sorted(names)
    before = times(folder)
    begun(line_of(weights, folder), least(sizes)).shard.close()
    assert times(folder) == before


@pytest.mark.parametrize("damage", ["gone", "cut", "another version", "the index"])
def test_a_file_that_is_damaged_is_made_again_and_the_others_stay(weights: Weights, folder: Path, sizes: StageSizes, damage: str) -> None:
    line = line_of(weights, folder)
    begun(line, least(sizes)).shard.close()
    before = times(folder)
    path = folder / "layer-0002.packed"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        with path.open("r+b") as file:
            file.seek(8 if damage == "another version" else path.stat().st_size - 9)
            file.write(b"\x09\x09")
    again = line_of(weights, folder)
    begun(again, least(sizes)).shard.close()
    after = times(folder)
    assert after.pop(path.name) != before.pop(path.name)
    assert after == before
    assert again.tokens == line.tokens


def damaged(folder: Path, name: str) -> None:
    """Flips bits in every page of a file's units, as a disk would: its size and its times stay."""
    path = folder / name
    status = path.stat()
    with path.open("r+b") as file:
        for at in range(4096, status.st_size - 4096, 4096):
            file.seek(at + 5)
            byte = file.read(1)[0]
            file.seek(at + 5)
            file.write(bytes([byte ^ 32]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["layer-0000.packed", "layer-0003.packed", "layer-0005.packed"])
def test_damage_under_a_stage_that_runs_ends_the_step_and_the_next_route_is_right(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]], name: str
) -> None:
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    before = times(folder)
    damaged(folder, name)
    known = {sequence: list(tokens) for sequence, tokens in line.tokens.items()}
    with pytest.raises(WeightsUnreadable, match=name):
        line.decode(20)
    assert all(tokens[: len(known[sequence])] == known[sequence] for sequence, tokens in line.tokens.items())
    steps = len(line.tokens[0]) - len(PROMPTS[0]) - 1
    layer = int(name[6:10])
    assert node.shard.missing(WHOLE, streamed=True) == [range(layer, layer + 1)]
    line.enter([WHOLE], [node], [least(sizes)])
    after = times(folder)
    assert after.pop(name) != before.pop(name)
    assert after == before
    line.decode(2)
    assert line.tokens == undisturbed(steps + 2)
    node.shard.close()


@pytest.mark.parametrize("change", ["cut", "longer", "written to", "emptied"])
def test_a_file_that_is_changed_under_a_stage_that_runs(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]], change: str
) -> None:
    """Even where what is read of it is still right."""
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    path = folder / "layer-0004.packed"
    size = path.stat().st_size
    if change == "written to":
        with path.open("r+b") as file:
            file.write(b"shoalpkd")
    else:
        os.truncate(path, {"cut": size // 2, "longer": size + 4096, "emptied": 0}[change])
    os.utime(path)
    with pytest.raises(WeightsUnreadable, match="layer-0004"):
        line.decode(20)
    steps = len(line.tokens[0]) - len(PROMPTS[0]) - 1
    line.enter([WHOLE], [node], [least(sizes)])
    line.decode(2)
    assert line.tokens == undisturbed(steps + 2)
    assert path.stat().st_size == size
    node.shard.close()


def test_the_second_damage_has_all_files_looked_at(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    """A request is given up after its third failed step, however many files are damaged."""
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    failures = 0
    for layer in WHOLE:
        damaged(folder, f"layer-{layer:04d}.packed")
    while len(line.tokens[0]) < len(PROMPTS[0]) + 5:
        try:
            line.decode(1)
        except WeightsUnreadable:
            failures += 1
            line.enter([WHOLE], [node], [least(sizes)])
    assert failures == 2
    assert line.tokens == undisturbed(4)
    node.shard.close()


def test_a_disk_that_keeps_nothing_is_not_used_any_more(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    """Whatever it is given, it gives back something else: from the third time on weights are packed on the way."""
    told: list[str] = []
    line = Line(
        weights, precision=Precision.Q4, packed=lambda of: PackedLayers(folder, of.spec, StoredTensors(of, Precision.Q4), told.append)
    )
    node = begun(line, least(sizes))
    failures = 0
    while len(line.tokens[0]) < len(PROMPTS[0]) + 5:
        for layer in WHOLE:
            damaged(folder, f"layer-{layer:04d}.packed")
        try:
            line.decode(1)
        except WeightsUnreadable:
            failures += 1
            line.enter([WHOLE], [node], [least(sizes)])
    assert failures == 3
    assert line.tokens == undisturbed(4)
    assert [said for said in told if "check the disk" in said] == [told[-1]]
    assert str(folder) in told[-1]
    line.enter([WHOLE], [node], [0])
    line.decode(1)
    line.enter([WHOLE], [node], [sizes.total // 2])
    line.decode(1)
    assert line.tokens == undisturbed(6)
    node.shard.close()


def test_damage_long_ago_is_forgotten(weights: Weights, folder: Path, sizes: StageSizes, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(packed_layers, "monotonic", lambda: now[0])
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    for _ in range(4):
        now[0] += 601
        before = times(folder)
        damaged(folder, "layer-0002.packed")
        with pytest.raises(WeightsUnreadable, match="layer-0002"):
            line.decode(20)
        line.enter([WHOLE], [node], [least(sizes)])
        after = times(folder)
        assert {name for name in before if after[name] != before[name]} == {"layer-0002.packed"}
    node.shard.close()


def test_a_damaged_head_is_made_again(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    """It is read when the stage is entered."""
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    node.shard.load(WHOLE, weights, streamed=True)
    damaged(folder, "head.packed")
    with pytest.raises(WeightsUnreadable, match=r"head\.packed"):
        node.shard.enter(WHOLE, WHOLE, line.blocks, least(sizes) + 100_000)
    assert node.shard.missing(WHOLE, streamed=True) == [range(LAYERS - 1, LAYERS)]
    line.enter([WHOLE], [node], [least(sizes)])
    line.decode(1)
    node.shard.close()


def test_a_disk_that_fails_while_a_stage_is_entered_is_tried_again(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    disk = Disk()
    line = line_of(weights, folder, disk)
    node = begun(line, least(sizes))
    for after in range(3):
        disk.faults = {disk.reads + after: FAULTS["EIO"]}
        with pytest.raises(WeightsUnreadable):
            node.shard.enter(WHOLE, WHOLE, line.blocks, sizes.total - 1)
        disk.faults = {}
        line.enter([WHOLE], [node], [sizes.total // 2])
        line.decode(1)
    assert line.tokens == undisturbed(5)
    node.shard.close()


def test_files_that_somebody_deleted_are_not_missed(
    weights: Weights, folder: Path, sizes: StageSizes, undisturbed: Callable[[int], dict[int, list[int]]]
) -> None:
    """Those that are open are read on; the next stage packs on the way."""
    line = line_of(weights, folder)
    node = begun(line, least(sizes))
    for file in folder.iterdir():
        file.unlink()
    line.decode(2)
    line.enter([WHOLE], [node], [sizes.total // 2])
    line.decode(2)
    assert line.tokens == undisturbed(6)
    node.shard.close()


def test_what_was_left_by_a_process_that_was_killed_is_deleted(weights: Weights, folder: Path) -> None:
    folder.mkdir()
    old, new = folder / "layer-0001.packed.77.partial", folder / "layer-0001.packed.78.partial"
    for file in (old, new):
        file.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    packed(weights, Precision.Q4, folder).make([0])
    assert sorted(file.name for file in folder.iterdir()) == ["layer-0000.packed", new.name]


def test_without_room_on_the_disk_weights_are_packed_on_the_way(
    weights: Weights,
    folder: Path,
    sizes: StageSizes,
    undisturbed: Callable[[int], dict[int, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_layers.shutil, "disk_usage", lambda folder: _Usage(1000))
    told: list[str] = []
    PackedLayers(folder, weights.spec, StoredTensors(weights, Precision.Q4), told.append).make([0, 1])
    assert list(folder.iterdir()) == []
    (line_told,) = told
    assert "the disk is full" in line_told and str(folder) in line_told and "--packed-cache" in line_told and "slower" in line_told
    for memory in (least(sizes), sizes.total // 2, sizes.total - 1):
        line = line_of(weights, folder)
        node = begun(line, memory)
        line.decode(4)
        assert line.tokens == undisturbed(6)
        node.shard.close()
    assert list(folder.iterdir()) == []


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_disk_that_becomes_full_keeps_what_is_whole(weights: Weights, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, written, told = packed_layers.write, list[Path](), list[str]()

    def write(path: Path, units: Any) -> Any:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, units)

    with monkeypatch.context() as disk:
        disk.setattr(packed_layers, "write", write)
        PackedLayers(folder, weights.spec, StoredTensors(weights, Precision.Q4), told.append).make(list(WHOLE))
    assert "the disk is full" in told[-1]
    assert sorted(times(folder)) == ["layer-0000.packed", "layer-0001.packed"]
    before = times(folder)
    packed(weights, Precision.Q4, folder).make(list(WHOLE))
    assert before.items() <= times(folder).items()


def test_a_model_that_is_damaged_leaves_no_files(weights: Weights, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = type(weights).matrix

    def matrix(self: Any, name: str) -> Any:
        if name == "layers.1.experts.5.up":
            raise CorruptModel("the model", "a matrix cannot be packed")
        return plain(self, name)

    monkeypatch.setattr(type(weights), "matrix", matrix)
    shard = Node(line_of(weights, folder)).shard
    with pytest.raises(CorruptModel):
        shard.load(WHOLE, weights, streamed=True)
    assert list(times(folder)) == ["layer-0000.packed"]
    assert shard.missing(WHOLE, streamed=True) == [WHOLE]


def test_what_is_said_to_the_person_at_the_machine(weights: Weights, folder: Path) -> None:
    said: list[str] = []
    files = packed_layers.PackedLayers(folder, weights.spec, packed(weights, Precision.Q4, folder)._tensors, said.append)
    files.make([*WHOLE, LAYERS])
    assert len(said) == 2
    assert said[0].startswith("packing weights for reads from disk: 1 of 7 parts")
    assert str(folder) in said[0]
    files.make([*WHOLE, LAYERS])
    assert len(said) == 2


def test_folders_are_told_apart_by_model_and_precision(weights: Weights) -> None:
    spec = weights.spec
    names = {
        packed_layers.folder_name("model.gguf", stamps, spec, precision)
        for stamps in ([("model.gguf", 10, 3)], [("model.gguf", 10, 4)], [("model.gguf", 11, 3)])
        for precision in (Precision.Q4, Precision.AUTO)
    }
    assert len(names) == 6
    assert packed_layers.folder_name("x" * 300, [], spec, Precision.Q4).startswith("x" * 80 + "-")


def test_everything_held_is_streamed_without_reads_after_a_while(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    disk = Disk()
    line = line_of(weights, folder, disk)
    node = begun(line, residencies(sizes)["100 %"])
    line.decode(10)
    assert disk.reads <= LAYERS + 1 + sum(sizes.experts.values())
    tally = node.shard.tally
    assert tally.hits > tally.misses
    assert np.isclose(tally.hit_rate, tally.hits / (tally.hits + tally.misses))
    node.shard.close()


def test_reads_are_counted_from_stage_to_stage(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    """Over stages of more and of less memory, and one that holds everything, no count falls."""
    line = line_of(weights, folder)
    node = begun(line, residencies(sizes)["25 %"])
    before = node.shard.expert_reads
    assert before.hits and before.misses and before.bytes_read
    for memory in (residencies(sizes)["50 %"], 0, residencies(sizes)["least"]):
        line.enter([WHOLE], [node], [memory])
        line.decode(2)
        now = node.shard.expert_reads
        assert all(a <= b for a, b in zip(before, now, strict=True))
        assert now.misses > before.misses or not memory
        before = now
    node.shard.close()
    assert node.shard.expert_reads == before


# Where experts are on other machines


def test_a_node_that_has_no_stage_any_more_gives_back_what_it_streamed_into(weights: Weights, folder: Path, sizes: StageSizes) -> None:
    node = begun(line_of(weights, folder), least(sizes))
    node.shard.rest()
    assert node.shard.nbytes, "for a later route"
    node.shard.shed([range(LAYERS - 1, LAYERS)])
    assert node.shard.nbytes, "one of them is wanted"
    node.shard.shed([])
    assert not node.shard.nbytes
    node.shard.close()


def test_what_is_held_after_streaming_is_held_without_the_experts_that_run_elsewhere(
    weights: Weights, folder: Path, sizes: StageSizes
) -> None:
    whole, never = begun(line_of(weights, folder)), Node(line_of(weights, folder))
    node = begun(line_of(weights, folder), least(sizes))
    away = {layer: frozenset(range(count // 2)) for layer, count in sizes.experts.items()}
    node.shard.load(WHOLE, weights, elsewhere=away)
    node.shard.enter(WHOLE, range(0), 16, remote=RemoteExperts(away, {}, Split(1, 0.0)))
    never.shard.load(WHOLE, weights, elsewhere=away)
    assert node.shard.nbytes == never.shard.nbytes < 0.7 * whole.shard.nbytes
    assert node.shard.missing(WHOLE, elsewhere=away) == []
    assert node.shard.missing(WHOLE) == [WHOLE]
    for one in (node, never, whole):
        one.shard.close()
