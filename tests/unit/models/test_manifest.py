"""What a model's files are: lists that are believed and lists that are not, and where files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import FetchError
from shoal.models.catalogue import catalogue
from shoal.models.manifest import Manifest, manifest
from shoal.models.model_file import ModelFile
from shoal.models.part import PartialFile
from shoal.models.sources import pin, pull_description, pull_layers
from shoal.models.weights import open_weights
from tests.support import tiny
from tests.support.hub_server import Hub

HASH, COMMIT = "a" * 64, "c" * 40
ALL = (range(4), True, True)
DESCRIBED = {"config.json", "model.safetensors.index.json", "generation_config.json"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved(tiny.model("llama"), tmp_path_factory.mktemp("model"), max_shard_size="60KB")


# Lists that are not believed


@pytest.mark.parametrize(
    "name", ["../x", "..", "/etc/passwd", "a/b", "a\\b", ".hidden", "-x", "", "x\0y", "x\n", "a" * 300, "config.json/../../x", "a b"]
)
def test_a_name_is_one_plain_component(name: str):
    with pytest.raises(FetchError, match="not a file of a model"):
        Manifest("/models/m", (ModelFile(name, 1, HASH),))


@pytest.mark.parametrize(
    "file",
    [
        ModelFile("f", 0, HASH),
        ModelFile("f", -1, HASH),
        ModelFile("f", 1 << 60, HASH),
        ModelFile("f", 1, "A" * 64),
        ModelFile("f", 1, "../x"),
    ],
)
def test_sizes_and_hashes_that_are_none(file: ModelFile):
    with pytest.raises(FetchError, match="not a file of a model"):
        Manifest("/models/m", (file,))


def test_names_come_once_and_are_not_too_many():
    with pytest.raises(FetchError, match="are not a model"):
        Manifest("/models/m", (ModelFile("f", 1, HASH), ModelFile("f", 2, HASH)))
    with pytest.raises(FetchError, match="are not a model"):
        Manifest("/models/m", tuple(ModelFile(f"f{i}", 1, HASH) for i in range(5000)))


@pytest.mark.parametrize("reference", ["hf:org/name", "hf:org/name@main", "hf:org/name@refs/pr/1", f"hf:org/name@{COMMIT[1:]}"])
def test_files_of_a_hub_are_of_a_commit(reference: str):
    with pytest.raises(FetchError, match="no particular commit"):
        Manifest(reference, (ModelFile("f", 1, HASH),))


def test_the_catalogue_is_not_overruled():
    entry = catalogue()["smollm2-135m"]
    assert Manifest("smollm2-135m", (ModelFile(entry.file, entry.size, entry.sha256),)).files
    with pytest.raises(FetchError, match="not those of the catalogue"):
        Manifest("smollm2-135m", (ModelFile(entry.file, entry.size, HASH),))


@pytest.mark.parametrize("reference", ["smollm2-135m", f"hf:org/name@{COMMIT}", "/models/m", "/etc/m.gguf", f"hf:../..@{COMMIT}"])
def test_files_belong_in_the_cache(reference: str, tmp_path: Path):
    entry = catalogue()["smollm2-135m"]
    file = ModelFile(entry.file, entry.size, entry.sha256)
    made = Manifest(reference, (file,))
    assert (made.home(tmp_path) / file.name).resolve().is_relative_to(tmp_path.resolve())
    assert made.lock(file, tmp_path).resolve().is_relative_to(tmp_path.resolve())


# The head's own list


def test_a_catalogue_model_is_not_hashed(tmp_path: Path):
    made, files = manifest("smollm2-135m", tmp_path / "not there")
    assert files == {made.files[0].sha256: tmp_path / "not there"}


def test_a_directory_is_listed_with_its_hashes(home: Path, tmp_path: Path):
    made, files = manifest(str(home), home, directory=tmp_path)
    names = {f.name for f in made.files}
    assert {"config.json", "model.safetensors.index.json"} < names
    assert not any("tokenizer" in name for name in names)
    for file in made.files:
        content = (home / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert files[file.sha256] == home / file.name


def test_a_local_path_may_go_unlisted(home: Path):
    assert manifest(str(home), home, hash_paths=False) == (Manifest(str(home), ()), {})


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, cache = tmp_path / "my model.gguf", tmp_path / "cache"
    model.write_bytes(b"one")
    hashed: list[object] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (hashed.append(file), digest(file, name))[1])
    first = manifest(str(model), model, directory=cache)
    assert manifest(str(model), model, directory=cache) == first
    assert len(hashed) == 1
    assert first[0].files == (ModelFile("model.gguf", 3, hashlib.sha256(b"one").hexdigest()),)
    model.write_bytes(b"three")
    assert manifest(str(model), model, directory=cache)[0].files[0].sha256 == hashlib.sha256(b"three").hexdigest()


# Where files lie


def test_a_path_that_is_here_too_is_used_where_it_lies(tmp_path: Path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"1234")
    made = Manifest(str(model), (ModelFile("model.gguf", 4, HASH),))
    assert made.located(*ALL, tmp_path / "cache") == model
    model.write_bytes(b"another file of this name")
    assert made.located(*ALL, tmp_path / "cache") is None
    assert made.missing(*ALL, tmp_path / "cache") == list(made.files)


def test_an_index_says_which_shards_are_needed(home: Path, tmp_path: Path):
    listed, _ = manifest(str(home), home, directory=tmp_path)
    made = Manifest("/not/here", listed.files)
    layers = range(1, 2)
    first = made.missing(layers, False, False, tmp_path)
    assert {f.name for f in first} == {"config.json", "model.safetensors.index.json"}
    place = made.home(tmp_path)
    place.mkdir(parents=True)
    for file in first:
        (place / file.name).write_bytes((home / file.name).read_bytes())
    shards = made.missing(layers, False, False, tmp_path)
    assert 0 < len(shards) < len([f for f in made.files if f.name.endswith(".safetensors")])
    assert made.located(layers, False, False, tmp_path) is None
    for file in shards:
        (place / file.name).write_bytes((home / file.name).read_bytes())
    assert made.located(layers, False, False, tmp_path) == place
    assert made.missing(*ALL, tmp_path)
    assert open_weights(place).matrix("layers.1.q").rows.size


def test_the_tokenizer_goes_where_the_last_layer_goes(tmp_path: Path):
    files = tuple(ModelFile(name, 1, HASH) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    made = Manifest("/not/here", files)
    assert {f.name for f in made.missing(range(3), True, False, tmp_path)} == {"config.json", "model.safetensors"}
    assert made.missing(range(3, 4), False, True, tmp_path) == list(files)
    place = made.home(tmp_path)
    place.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (place / name).write_bytes(b"x")
    assert made.located(range(3), True, False, tmp_path) == place
    assert made.located(range(3, 4), False, True, tmp_path) is None


def test_an_index_that_names_what_is_not_listed_is_left_to_the_origin(home: Path, tmp_path: Path):
    listed, _ = manifest(str(home), home, directory=tmp_path)
    made = Manifest("/not/here", tuple(f for f in listed.files if not f.name.startswith("model-00002")))
    place = made.home(tmp_path)
    place.mkdir(parents=True)
    for file in made.files:
        (place / file.name).write_bytes((home / file.name).read_bytes())
    assert made.missing(*ALL, tmp_path) == []
    assert made.located(*ALL, tmp_path) is None


# A hub


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub("org/toy", {f.name: f.read_bytes() for f in home.iterdir()}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        yield hub


def test_the_hub_says_what_the_head_does_not_have(hub: Hub, home: Path, tmp_path: Path):
    reference = pin("hf:org/toy")
    made, files = manifest(reference, pull_description(reference, tmp_path), directory=tmp_path)
    shards = {f.name: f.sha256 for f in made.files if f.name.endswith(".safetensors") and f.size >= hub.large}
    assert shards
    assert all(sha256 == hashlib.sha256((home / name).read_bytes()).hexdigest() for name, sha256 in shards.items())
    assert {p.name for p in files.values()} == DESCRIBED


def test_a_hub_that_does_not_answer_leaves_what_it_said_before(hub: Hub, tmp_path: Path):
    reference = pin("hf:org/toy")
    path = pull_description(reference, tmp_path)
    told, _ = manifest(reference, path, directory=tmp_path)
    hub.status = 500
    assert manifest(reference, path, directory=tmp_path)[0] == told


def test_a_hub_that_never_answered_leaves_what_is_here(hub: Hub, tmp_path: Path):
    reference = pin("hf:org/toy")
    path = pull_description(reference, tmp_path)
    hub.status = 500
    for listing in tmp_path.rglob("listings/*.json"):
        listing.unlink()
    made, _ = manifest(reference, path, directory=tmp_path)
    assert {f.name for f in made.files} == DESCRIBED


def test_what_peers_and_the_hub_bring_goes_to_one_place(hub: Hub, home: Path, tmp_path: Path):
    """A file that is here already is not fetched from the hub, and the other way round."""
    hub.large = 1
    reference = pin("hf:org/toy")
    made, _ = manifest(reference, pull_description(reference, tmp_path / "head"), directory=tmp_path / "head")
    hub.asked.clear()
    node = tmp_path / "node"
    place = made.home(node)
    place.mkdir(parents=True)
    peers = next(f.name for f in made.files if f.name.endswith(".safetensors"))
    for name in (peers, *DESCRIBED):
        (place / name).write_bytes((home / name).read_bytes())
    assert pull_layers(reference, *ALL, directory=node) == place
    assert peers not in hub.fetched()
    assert made.located(*ALL, node) == place


# Parts


def part(tmp_path: Path, content: bytes) -> PartialFile:
    return PartialFile(tmp_path, ModelFile("f", len(content), hashlib.sha256(content).hexdigest()))


def test_a_part_goes_on_where_it_ended(tmp_path: Path):
    content = bytes(range(256)) * 40000
    first = part(tmp_path, content)
    piece = first.ranges.take()
    assert piece is not None
    first.write(piece.start, [content[piece.start : piece.stop]])
    first.ranges.finish(piece)
    first.note()
    again = part(tmp_path, content)
    assert again.resumed == len(piece)
    while (piece := again.ranges.take()) is not None:
        again.write(piece.start, [content[piece.start : piece.stop]])
        again.ranges.finish(piece)
    assert again.is_right()
    again.move(tmp_path / "place" / "f")
    assert (tmp_path / "place" / "f").read_bytes() == content
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


@pytest.mark.parametrize("note", [b"", b"noise", b"[[0, 99]]", b"[[2, 1]]", b"[[-1, 1]]", b"[[0, 2], [1, 3]]", b'[["a", 1]]', b"\xff"])
def test_a_note_that_cannot_be_is_not_believed(note: bytes, tmp_path: Path):
    first = part(tmp_path, b"0123456789")
    first.note()
    next(tmp_path.glob("*.ranges")).write_bytes(note)
    again = part(tmp_path, b"0123456789")
    assert (again.resumed, again.ranges.done) == (0, [])


def test_a_disk_without_room(tmp_path: Path):
    with pytest.raises(FetchError, match="disk is full"):
        PartialFile(tmp_path, ModelFile("f", 1 << 49, HASH))
    assert list(tmp_path.iterdir()) == []
