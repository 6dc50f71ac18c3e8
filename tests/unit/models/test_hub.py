"""Models of a hub, which is a local one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import FetchError, ShoalError, UserError
from shoal.models.sources import pin, pull, pull_description, pull_layers
from shoal.models.weights import open_weights
from tests.support import tiny
from tests.support.hub_server import Hub


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sharded model of three layers, with things that nobody needs."""
    home = tiny.saved(tiny.model("llama"), tmp_path_factory.mktemp("hub"), max_shard_size="60KB")
    found = {f.name: f.read_bytes() for f in home.iterdir()}
    return {**found, "README.md": b"#", "pytorch_model.bin": b"?", "tokenizer.json": b"{}"}


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    old = {**files, "generation_config.json": b"old"}
    with Hub("org/toy", old, files).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        yield hub


def shards(files: dict[str, bytes]) -> dict[str, str]:
    return json.loads(files["model.safetensors.index.json"])["weight_map"]


def test_a_model_of_the_hub(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    home = pull("hf:org/toy", directory=tmp_path)
    assert {f.name for f in home.iterdir()} == set(files) - {"README.md", "pytorch_model.bin"}
    assert len(open_weights(home).spec.layers) == 3


def test_pinning(hub: Hub) -> None:
    assert pin("hf:org/toy") == f"hf:org/toy@{hub.main}"
    old = next(iter(hub.commits))
    assert pin(f"hf:org/toy@{old}") == f"hf:org/toy@{old}"
    assert pin("smollm2-135m") == "smollm2-135m"


def test_a_revision_is_kept_to(hub: Hub, tmp_path: Path) -> None:
    old = next(iter(hub.commits))
    assert (pull_description(f"hf:org/toy@{old}", tmp_path) / "generation_config.json").read_bytes() == b"old"


def test_the_description_without_weights(hub: Hub, tmp_path: Path) -> None:
    home = pull_description("hf:org/toy", tmp_path)
    assert {f.name for f in home.iterdir()} >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all(asked == "bytes=0-100000" for method, path, asked in hub.asked if method == "GET" and path.endswith(".safetensors"))


def test_the_description_without_a_hub(hub: Hub, tmp_path: Path) -> None:
    home = pull_description("hf:org/toy", tmp_path)
    hub.status = 503
    assert pull_description("hf:org/toy", tmp_path) == home


def test_a_cache_without_a_listing_does_without_a_hub(hub: Hub, tmp_path: Path) -> None:
    home = pull("hf:org/toy", directory=tmp_path)
    for listing in tmp_path.rglob("listings/*.json"):
        listing.unlink()
    hub.status = 503
    assert pull("hf:org/toy", directory=tmp_path) == home


@pytest.mark.parametrize(("layers", "first", "last"), [(range(1), True, False), (range(1, 2), False, False), (range(2, 3), False, True)])
def test_only_the_files_of_the_layers(layers: range, first: bool, last: bool, hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    weights = open_weights(pull_layers("hf:org/toy", layers, first, last, directory=tmp_path))
    fetched = {name for name in hub.fetched() if name.endswith(".safetensors")}
    prefixes = [f"model.layers.{i}." for i in layers] + ["model.embed_tokens"] * (first or last) + ["model.norm", "lm_head"] * last
    assert fetched == {file for tensor, file in shards(files).items() if tensor.startswith(tuple(prefixes))}
    assert fetched < set(shards(files).values())
    assert weights.matrix(f"layers.{layers.start}.down").n == 64


def test_a_model_in_one_file(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tiny.saved(tiny.model("llama"), tmp_path / "made")
    with Hub("org/toy", {f.name: f.read_bytes() for f in home.iterdir()}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        weights = open_weights(pull_layers("hf:org/toy", range(2), True, False, directory=tmp_path))
        assert weights.matrix("layers.2.down").n == 64


def test_what_the_cache_has_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    pull(f"hf:org/toy@{hub.main}", directory=tmp_path)
    hub.asked.clear()
    pull(f"hf:org/toy@{hub.main}", directory=tmp_path)
    assert hub.fetched() == set()


@pytest.mark.parametrize(("text", "message"), [("hf:org/none", "no such model"), ("hf:org/toy@none", "no such revision")])
def test_what_the_hub_does_not_have(text: str, message: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=message):
        pull(text, directory=tmp_path)
    with pytest.raises(FetchError, match=message):
        pin(text)


def test_a_hub_that_refuses(hub: Hub) -> None:
    hub.status = 403
    with pytest.raises(FetchError, match="403"):
        pin("hf:org/toy")


def test_a_middle_stage_of_a_model_in_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tiny.saved(tiny.model("llama"), tmp_path / "made")
    with Hub("org/toy", {f.name: f.read_bytes() for f in home.iterdir()}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        open_weights(pull_layers("hf:org/toy", range(1, 2), False, False, directory=tmp_path))


@pytest.mark.parametrize("call", [pin, pull, pull_description, lambda t: pull_layers(t, range(1), True, True)])
@pytest.mark.parametrize("text", ["hf:../..", "hf:-a/b", "hf:a..b/c"])
def test_names_that_the_hub_does_not_allow(call: Any, text: str) -> None:
    with pytest.raises(UserError):
        call(text)


@pytest.mark.parametrize("call", [pin, pull, pull_description, lambda t: pull_layers(t, range(1), True, True)])
def test_a_hub_that_is_not_there(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    with pytest.raises(FetchError):
        call("hf:org/toy")


def test_an_index_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Hub("org/toy", {"config.json": b"{}", "model.safetensors.index.json": b"[]"}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(ShoalError):
            pull("hf:org/toy", directory=tmp_path)


@pytest.mark.parametrize("call", [pull_description, lambda t: pull_layers(t, range(1), True, True)])
def test_a_full_disk_while_a_node_fetches(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with Hub("org/toy", {"config.json": b"{}", "model.safetensors": b"weights"}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
        monkeypatch.setattr("shoal.models.hub_folder.HubFolder.link", full)
        with pytest.raises(FetchError, match="disk is full"):
            call("hf:org/toy")
