"""Packed files of layers copied from peers that are well, ill, or lie; what does not come is packed as ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.config import Precision
from shoal.control import messages as control
from shoal.errors import CorruptModel
from shoal.executor.expert_bank import ExpertBank
from shoal.executor.packed_layers import PackedLayers
from shoal.models.weights import Weights
from shoal.node.fetch import Fetcher
from shoal.node.host_environment import HostEnvironment
from shoal.node.packing import packing_of
from shoal.node.share import Share
from shoal.transport import tcp
from shoal.weights import packed_file
from tests.support.cluster import until
from tests.support.expert_workers import bytes_of, every_expert
from tests.support.mixtures import Maker
from tests.support.routed_rows import routed_of
from tests.support.share import CONTENT, HASH, Hand, Holder, dying, forging, holding, noted, order, played, serve, well
from tests.support.streamed import packed

PRECISION = Precision.Q8


def offered(*layers: int, sha256: str = HASH, size: int = len(CONTENT)) -> list[control.PackedFile]:
    return [control.PackedFile(layer=layer, size=size, sha256=sha256) for layer in layers]


def ordered(files: Sequence[control.PackedFile], *holders: Holder) -> control.Load:
    """All holders have all files."""
    load = order(*(holder.peer() for holder in holders))
    load.packed = list(files)
    for peer in load.peers:
        peer.packed = list(range(len(files)))
    return load


def usable(layer: int) -> bool:
    return True


async def copied(
    machine: HostEnvironment, load: control.Load, folder: Path, layers: Sequence[int] = (0,), check: Callable[[int], bool] = usable
) -> int:
    return await Fetcher(machine, Share(), folder / "cache").copy(load, {layer: folder / f"{layer}.packed" for layer in layers}, check)


def came(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.packed")}


def remains(folder: Path) -> list[str]:
    """Beside locks."""
    return [path.name for path in (folder / "parts").iterdir() if path.suffix != ".lock"]


def test_files_come_into_their_places(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            assert await copied(machine, ordered(offered(0, 2), holder), tmp_path, [0, 1, 2]) == 2
            assert came(tmp_path) == {"0.packed": CONTENT, "2.packed": CONTENT}
            assert remains(tmp_path) == []

    played(scenario())


def test_bytes_that_came_are_counted(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            fetcher = Fetcher(machine, Share(), tmp_path / "cache")
            await fetcher.copy(ordered(offered(0), holder), {0: tmp_path / "0.packed"}, usable)
            assert fetcher.fetched == len(CONTENT)

    played(scenario())


BAD: dict[str, Hand] = {"lies": forging, "dies": dying}


@pytest.mark.parametrize("hand", BAD.values(), ids=BAD.keys())
def test_a_bad_peer_alone_brings_nothing_and_is_asked_for_no_other_file(hand: Hand, machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding(hand) as bad:
            assert await copied(machine, ordered(offered(0, 1), bad), tmp_path, [0, 1]) == 0
            assert came(tmp_path) == {} and remains(tmp_path) == []
            assert len(bad.asked) <= 3, "a file has three ranges"

    played(scenario())


@pytest.mark.parametrize("hand", BAD.values(), ids=BAD.keys())
def test_a_good_peer_makes_up_for_a_bad_one(hand: Hand, machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding(hand) as bad, holding() as good:
            assert await copied(machine, ordered(offered(0), bad, good), tmp_path) == 1
            assert (tmp_path / "0.packed").read_bytes() == CONTENT

    played(scenario())


def test_another_size_than_was_said_is_refused(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            for size in (len(CONTENT) - 1, len(CONTENT) // 2):
                assert await copied(machine, ordered(offered(0, size=size), holder), tmp_path) == 0
            assert came(tmp_path) == {}

    played(scenario())


def test_where_nodes_packed_other_bytes_any_will_do(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding(forging) as bad, holding() as good:
            other = "0" * 64
            load = ordered([*offered(0, sha256=other), *offered(0)], bad, good)
            load.peers[0].packed, load.peers[1].packed = [0], [1]
            assert await copied(machine, load, tmp_path) == 1

    played(scenario())


def test_a_file_that_is_of_no_use_is_not_counted_and_its_peers_are_asked_no_more(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            looked: list[int] = []
            load = ordered(offered(0, 1), holder)
            assert await copied(machine, load, tmp_path, [0, 1], lambda layer: bool(looked.append(layer))) == 0
            assert looked == [0] and len(holder.asked) == 3

    played(scenario())


def test_an_interrupted_copy_goes_on_where_it_stopped(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        stuck = asyncio.Event()

        async def stops(stream: Any, asked: Any, before: list[range]) -> None:
            if len(before) > 2:
                stuck.set()
                await asyncio.sleep(60)
            await well(stream, asked, before)

        async with holding(stops) as slow, holding() as holder:
            first = asyncio.ensure_future(copied(machine, ordered(offered(0), slow), tmp_path))
            await stuck.wait()
            await asyncio.to_thread(until, lambda: noted(tmp_path))
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert await copied(machine, ordered(offered(0), holder), tmp_path) == 1
            assert len(holder.asked) < 3
            assert (tmp_path / "0.packed").read_bytes() == CONTENT

    played(scenario())


def test_two_processes_copy_a_file_once(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            load = ordered(offered(0), holder)
            assert await asyncio.gather(copied(machine, load, tmp_path), copied(machine, load, tmp_path)) == [1, 1]
            assert len(holder.asked) == 3

    played(scenario())


@pytest.mark.parametrize(("sha256", "size"), [("../../x", 5), ("a" * 63, 5), ("A" * 64, 5), (HASH, 0), (HASH, 1 << 60)])
def test_what_can_be_no_file_is_not_asked_for(machine: HostEnvironment, tmp_path: Path, sha256: str, size: int) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            assert await copied(machine, ordered(offered(0, sha256=sha256, size=size), holder), tmp_path) == 0
            assert holder.asked == []

    played(scenario())


def test_a_disk_without_room_leaves_it_to_packing(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with holding() as holder:
            assert await copied(machine, ordered(offered(0, size=1 << 49), holder), tmp_path) == 0
            assert holder.asked == []

    played(scenario())


def test_a_node_that_shares_nothing_neither_copies_nor_offers(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "layer.packed"
        path.write_bytes(CONTENT)
        async with holding() as holder:
            fetcher = Fetcher(machine, files := Share(open=False), tmp_path / "cache")
            assert await fetcher.copy(ordered(offered(0), holder), {0: tmp_path / "0.packed"}, usable) == 0
            assert await fetcher.offer_packed(order(), {0: path}) == [] and files.files == []
            assert holder.asked == []

    played(scenario())


def test_what_is_offered_is_named_by_its_hash_and_its_packing(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "layer.packed"
        path.write_bytes(CONTENT)
        fetcher = Fetcher(machine, files := Share(), tmp_path / "cache")
        load = order()
        load.precision = "q8"
        assert await fetcher.offer_packed(load, {3: path, 4: tmp_path / "gone"}) == [
            control.PackedFile(packing=packing_of([HASH], "q8"), layer=3, size=len(CONTENT), sha256=HASH)
        ]
        assert files.files == [HASH]

    played(scenario())


def test_a_model_whose_files_are_not_known_is_not_offered(machine: HostEnvironment, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "layer.packed"
        path.write_bytes(CONTENT)
        assert await Fetcher(machine, Share(), tmp_path / "cache").offer_packed(order(files=()), {3: path}) == []

    played(scenario())


def test_a_packing_is_of_files_a_precision_a_layout_and_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {packing_of(["a", "b"], "q8"), packing_of(["a"], "q8"), packing_of(["a", "b"], "q4")}
    monkeypatch.setattr("shoal.node.packing.LAYOUT", packed_file.LAYOUT + 1)
    names.add(packing_of(["a", "b"], "q8"))
    monkeypatch.setattr("shoal.node.packing.__version__", "another")
    names.add(packing_of(["a", "b"], "q8"))
    assert len(names) == 5
    assert packing_of(["b", "a"], "q8") == packing_of(["a", "b"], "q8")


# Real ones


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Maker(tmp_path_factory.mktemp)("deepseek v3", PRECISION).weights


class NoTensors:
    """Of a model that is not here."""

    def matrix(self, name: str) -> Any:
        raise CorruptModel("the model", f"{name} was asked for")

    def vector(self, name: str) -> Any:
        raise CorruptModel("the model", f"{name} was asked for")


def test_copied_files_give_the_same_bits_and_nothing_is_packed(machine: HostEnvironment, weights: Weights, tmp_path: Path) -> None:
    spec, layers = weights.spec, [*every_expert(weights), len(weights.spec.layers)]
    here = packed(weights, PRECISION, tmp_path / "here")
    here.make(layers)
    there = PackedLayers(tmp_path / "there", spec, NoTensors())

    async def scenario() -> None:
        share, ends = Share(), list[Exception]()
        files = await Fetcher(machine, share, tmp_path / "cache").offer_packed(order(), {layer: here.path(layer) for layer in layers})
        listener = await tcp.listen("127.0.0.1", 0, lambda stream: serve(stream, share, ends))
        load = ordered(files, Holder(listener, []))
        places = {layer: there.path(layer) for layer in layers}
        assert await Fetcher(machine, Share(), tmp_path / "cache").copy(load, places, there.usable) == len(layers)
        await listener.close()

    played(scenario())
    there.close()
    experts, whole = every_expert(weights), ExpertBank(spec, PRECISION, 1)
    whole.hold(experts, weights)
    bank = ExpertBank(spec, PRECISION, 1, packed=lambda _: PackedLayers(tmp_path / "there", spec, NoTensors()))
    bank.hold(experts, weights, bytes_of(weights, PRECISION, experts) // 2)
    for layer in experts:
        routed = routed_of([{0: 1.0, 3: 0.5}, {2: 1.0}], layer, spec.hidden)
        assert np.array_equal(bank.run(routed), whole.run(routed))
    bank.close()


Spoil = Callable[[Path, PackedLayers], None]


def one_bit(path: Path, files: PackedLayers) -> None:
    data = bytearray(path.read_bytes())
    data[files.unit(1, "expert 3").at + 70] ^= 1
    path.write_bytes(data)


def rewritten(change: Callable[[dict[str, packed_file.Contents]], None]) -> Spoil:
    """Complete, and every hash is right."""

    def spoil(path: Path, files: PackedLayers) -> None:
        contents = dict(files._contents(1))
        change(contents)
        packed_file.write(path, contents.items())

    return spoil


def without_a_matrix(contents: dict[str, packed_file.Contents]) -> None:
    matrices = dict(contents["expert 2"].matrices)
    matrices.popitem()
    contents["expert 2"] = packed_file.Contents(matrices, {})


def of_another_form(contents: dict[str, packed_file.Contents]) -> None:
    form, data = next(iter(contents["expert 2"].matrices.values()))
    wrong = dict.fromkeys(contents["expert 2"].matrices, ((*form[:5], form[5] // 2, form[6] * 2), data))
    contents["expert 2"] = packed_file.Contents(wrong, {})


def without_an_expert(contents: dict[str, packed_file.Contents]) -> None:
    del contents["expert 2"]


def without_a_norm(contents: dict[str, packed_file.Contents]) -> None:
    contents["constant"] = packed_file.Contents(contents["constant"].matrices, {})


@pytest.mark.parametrize(
    "spoil",
    [
        one_bit,
        lambda path, files: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, files: path.write_bytes(b""),
        *map(rewritten, (without_a_matrix, of_another_form, without_an_expert, without_a_norm)),
    ],
    ids=["one bit", "cut", "empty", "a matrix is missing", "another form", "an expert is missing", "a norm is missing"],
)
def test_a_file_with_the_right_hash_and_wrong_contents_is_deleted(weights: Weights, tmp_path: Path, spoil: Spoil) -> None:
    files = packed(weights, PRECISION, tmp_path)
    files.make([1])
    assert files.usable(1)
    files.close()
    good = files.path(1).read_bytes()
    spoil(files.path(1), files)
    again = packed(weights, PRECISION, tmp_path)
    assert not again.usable(1)
    assert not again.path(1).exists()
    again.path(1).write_bytes(good)
    assert again.usable(1), "another node's"
    again.close()
