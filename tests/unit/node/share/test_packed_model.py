"""A node's model says which packed files it lacks, and which of them others may copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.config import NodeSettings
from shoal.control import messages as control
from shoal.models.manifest import Manifest, manifest
from shoal.node.holding import PulledModel
from tests.support import mixtures, tiny

LAYERS = mixtures.LAYERS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    return tiny.saved(mixtures.Maker(tmp_path_factory.mktemp).built("mixtral"), folder)


def ordered(home: Path, tmp_path: Path, files: bool = True) -> control.Load:
    listed: Manifest = manifest(str(home), home, directory=tmp_path / "head")[0]
    return control.Load(
        model=str(home),
        first_layer=0,
        end_layer=LAYERS,
        layers=LAYERS,
        precision="q8",
        kv_type="bf16",
        codec="raw",
        files=[control.ModelFile(name=f.name, size=f.size, sha256=f.sha256) for f in listed.files] if files else [],
    )


def node(tmp_path: Path, order: control.Load, packed: str = "") -> PulledModel:
    return PulledModel(NodeSettings(threads=1, packed_cache=packed or str(tmp_path / "packed")), order)


def streaming(model: PulledModel) -> None:
    """Half of the experts in memory."""
    every = {layer: frozenset(range(8)) for layer in range(LAYERS)}
    model.hold(every, 400_000)
    assert model.expert_reads.misses == 0 and model.nbytes <= 400_000


def test_what_was_packed_may_be_copied(home: Path, tmp_path: Path) -> None:
    model = node(tmp_path, ordered(home, tmp_path))
    assert model.packed == {}
    wanted = model.unpacked([0, 3, LAYERS])
    assert {layer: path.name for layer, path in wanted.items()} == {
        0: "layer-0000.packed",
        3: "layer-0003.packed",
        LAYERS: "head.packed",
    }
    assert model.packed == {}
    streaming(model)
    assert {layer: model.packed[layer] for layer in (0, 3)} == {layer: wanted[layer] for layer in (0, 3)}
    assert sorted(model.packed) == list(range(LAYERS)), "the head was not packed"
    assert model.unpacked([0, 3, LAYERS]) == {LAYERS: wanted[LAYERS]}
    model.close()


def test_a_copy_is_looked_at_in_its_place(home: Path, tmp_path: Path) -> None:
    model = node(tmp_path, ordered(home, tmp_path))
    streaming(model)
    place = model.unpacked([LAYERS])[LAYERS]
    assert model.usable(2)
    place.write_bytes(model.packed[2].read_bytes())
    assert not model.usable(LAYERS), "that is another layer's"
    assert not place.exists()
    model.close()


def test_a_model_that_the_head_does_not_list_is_offered_to_nobody(home: Path, tmp_path: Path) -> None:
    model = node(tmp_path, ordered(home, tmp_path, files=False))
    streaming(model)
    assert model.packed == {}
    model.close()


def test_another_model_at_the_same_path_is_offered_to_nobody(home: Path, tmp_path: Path) -> None:
    order = ordered(home, tmp_path)
    order.files[0].size += 1
    model = node(tmp_path, order)
    streaming(model)
    assert model.packed == {}
    model.close()


def test_a_node_that_may_not_read_from_disk_copies_nothing(home: Path, tmp_path: Path) -> None:
    assert node(tmp_path, ordered(home, tmp_path), "none").unpacked([0, 1]) == {}
