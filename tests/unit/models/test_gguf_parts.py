"""GGUF models in parts: found by any of them, complete or refused by the name of what is missing, fetched part by part by nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shoal.errors import CorruptModel, UserError
from shoal.models.description import describe, listed
from shoal.models.gguf_files import INDEX, GgufFiles
from shoal.models.manifest import Manifest, manifest
from shoal.models.sources import find, public_name
from shoal.models.weights import GgufWeights
from tests.support import tiny
from tests.support.gguf_split import split
from tests.support.gguf_writer import write_model

FACTORS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "m.gguf", tiny.model("llama"), "llama", "q8_0", factors=FACTORS)


def read(weights: GgufWeights, layers: range, first: bool = True, last: bool = True) -> dict[str, bytes]:
    names = [f"layers.{i}.{m}" for i in layers for m in weights.spec.matrices(i)] + ["embed"] * first + ["head"] * last
    vectors = [f"layers.{i}.{v}" for i in layers for v in ("attention_norm", "mlp_norm")] + ["norm"] * last
    out = {name: weights.matrix(name).floats().tobytes() for name in names}
    for name in vectors:
        vector = weights.vector(name)
        assert vector is not None
        out[name] = vector.tobytes()
    return out


@pytest.mark.parametrize("named", [0, 2])
def test_a_model_in_parts_is_the_model(named: int, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    described = describe(str(parts[named]))
    assert (described.path, described.name) == (parts[0], "my model")
    weights, same = described.weights, GgufWeights(whole)
    assert isinstance(weights, GgufWeights)
    assert weights.spec == same.spec
    assert [rope.factors for rope, _ in weights.spec.rotations] == [tuple(FACTORS)]
    assert read(weights, range(3)) == read(same, range(3))
    weights.forget()


def test_links_to_parts_are_followed(whole: Path, tmp_path: Path) -> None:
    """As the hub's client lays files out: links by their names to files that are called by their hash."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for at, part in enumerate(split(whole, tmp_path)):
        (tmp_path / "snapshot" / part.name).symlink_to(part.rename(tmp_path / "blobs" / f"{at}"))
    first = find(str(tmp_path / "snapshot" / "my model-00001-of-00004.gguf"))
    assert first is not None
    assert read(GgufWeights(first), range(3)) == read(GgufWeights(whole), range(3))


@pytest.mark.parametrize("lost", [1, 3])
def test_a_part_that_is_missing_is_named(lost: int, whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    parts[lost].unlink()
    with pytest.raises(UserError, match=rf"my model-0000{lost + 1}-of-00004.gguf: this part of the model is missing; put all 4"):
        describe(str(parts[0]))


def test_the_first_part_is_missed_too(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    parts[0].unlink()
    with pytest.raises(UserError, match=r"my model-00001-of-00004\.gguf: no such file"):
        describe(str(parts[1]))


def test_parts_that_do_not_belong_together(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    kept = parts[1].read_bytes()
    shutil.copy(parts[2], parts[1])
    with pytest.raises(CorruptModel, match="this is not part 2 of 4"):
        GgufFiles(parts[0])
    parts[1].write_bytes(kept)
    with pytest.raises(CorruptModel, match=r"are named as gguf-split does"):
        GgufFiles(parts[0].rename(tmp_path / "model.gguf"))
    for part in split(whole, tmp_path, changes={"split.tensors.count": 5}):
        assert part.exists()
    with pytest.raises(CorruptModel, match="tensors where 5 should be"):
        GgufFiles(parts[0])


def test_a_single_file_that_is_named_like_a_part(whole: Path, tmp_path: Path) -> None:
    alone = tmp_path / "m-00001-of-00001.gguf"
    shutil.copy(whole, alone)
    assert public_name(str(alone)) == "m"
    assert GgufWeights(alone).spec == GgufWeights(whole).spec
    made, files = manifest(str(alone), alone, directory=tmp_path)
    assert [file.name for file in made.files] == ["model.gguf"] and list(files.values()) == [alone]


# Nodes


def elsewhere(made: Manifest) -> Manifest:
    """What a node on another machine hears: the path says nothing there."""
    return Manifest("/on/another/machine/m-00001-of-00004.gguf", made.files)


def test_a_node_fetches_the_parts_of_its_layers_alone(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    described = listed(describe(str(parts[0])), hash_paths=True)
    assert described.manifest is not None
    files, made, cache = described.files, elsewhere(described.manifest), tmp_path / "cache"
    home = made.home(cache)
    home.mkdir(parents=True)
    sought, fetched = (range(2, 3), False, True), []
    while missing := made.missing(*sought, cache):
        for file in missing:
            shutil.copy(files[file.sha256], home / file.name)
            fetched.append(file.name)
    assert sorted(fetched)[-1] == INDEX and "model-00001-of-00004.gguf" in fetched
    assert len(fetched) < len(made.files)
    path = made.located(*sought, cache)
    assert path is not None and path == home / "model-00001-of-00004.gguf"
    weights = GgufWeights(path)
    assert weights.spec == GgufWeights(whole).spec
    assert read(weights, range(2, 3), False, True) == read(GgufWeights(whole), range(2, 3), False, True)
    assert made.located(range(3), True, True, cache) is None
    absent = next(name for name in ("layers.0.q", "layers.1.q", "layers.0.down", "layers.1.down") if name in _absent(weights))
    with pytest.raises(UserError, match=r"model-0000\d-of-00004\.gguf: this part of the model is missing, and tensor blk"):
        weights.matrix(absent)
    assert set(made.kept(cache)) == {file.sha256 for file in made.files if file.name in fetched}


def _absent(weights: GgufWeights) -> set[str]:
    out: set[str] = set()
    for name in ("layers.0.q", "layers.1.q", "layers.0.down", "layers.1.down"):
        try:
            weights.matrix(name)
        except UserError:
            out.add(name)
    return out


def test_a_node_that_has_the_same_folder_uses_it(whole: Path, tmp_path: Path) -> None:
    parts = split(whole, tmp_path)
    made, _ = manifest(str(parts[0]), parts[0], directory=tmp_path / "cache")
    assert made.located(range(3), True, True, tmp_path / "other") == parts[0]
    parts[3].unlink()
    assert made.located(range(3), True, True, tmp_path / "other") is None
