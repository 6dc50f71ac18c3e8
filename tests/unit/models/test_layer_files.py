"""Which files of a model in several a node fetches: those with its layers, and nothing of what reads images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from shoal.models.families import FAMILIES
from shoal.models.layer_files import every_shard, wanted_tensors
from shoal.models.sources import pull, pull_description, pull_layers
from shoal.models.weights import SafetensorsWeights, needed, open_spec, open_weights
from tests.support import tiny, tiny_families
from tests.support.hub_server import Hub

WITH_EYES = ["gemma3 beside images", "mistral beside images"]
HEAD = "lm_head."
"""Of some it is beside the language model."""


@pytest.fixture(params=WITH_EYES)
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    home = tiny.saved(tiny_families.model(request.param), tmp_path / "model", max_shard_size="8KB")
    with Hub("org/eyes", {file.name: file.read_bytes() for file in home.iterdir()}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
        yield hub


def weight_map(hub: Hub) -> dict[str, str]:
    return json.loads(hub.commits[hub.main]["model.safetensors.index.json"])["weight_map"]


def weights_in(home: Path) -> set[str]:
    return {file.name for file in home.glob("*.safetensors")}


def test_a_middle_node_fetches_its_layer_and_no_layer_that_reads_images(hub: Hub) -> None:
    files = weight_map(hub)
    assert any("vision" in tensor and "layers.1." in tensor for tensor in files)
    home = pull_layers("hf:org/eyes", range(1, 2), False, False)
    assert weights_in(home) == {file for tensor, file in files.items() if tensor.startswith("language_model.model.layers.1.")}
    open_weights(home).check(range(1, 2))


def test_the_last_node_fetches_the_head_and_nothing_that_reads_images(hub: Hub) -> None:
    last = len(open_spec(pull_description("hf:org/eyes")).layers) - 1
    home = pull_layers("hf:org/eyes", range(last, last + 1), False, True)
    parts = (f"model.layers.{last}.", "model.norm.", "model.embed_tokens.", "lm_head.")
    beside = (*(f"language_model.{part}" for part in parts), HEAD)
    assert weights_in(home) == {file for tensor, file in weight_map(hub).items() if tensor.startswith(beside)}
    open_weights(home).check(range(last, last + 1))


def test_the_whole_model_is_fetched_without_what_reads_images(hub: Hub) -> None:
    files = weight_map(hub)
    home = pull("hf:org/eyes")
    assert weights_in(home) == {file for tensor, file in files.items() if tensor.startswith(("language_model.", HEAD))}
    assert weights_in(home) < set(files.values())
    weights = open_weights(home)
    weights.check(range(len(weights.spec.layers)))


@pytest.mark.parametrize("name", tiny_families.SIZES)
def test_all_that_a_family_reads_is_fetched(name: str, tmp_path: Path) -> None:
    file = tiny.saved(tiny_families.model(name), tmp_path) / "model.safetensors"
    spec = SafetensorsWeights(tmp_path).spec
    with safe_open(file, "np") as opened:
        read = set(opened.keys()) & needed(spec, FAMILIES[spec.family].safetensors)
    index = json.dumps({"weight_map": {tensor: tensor for tensor in read}}).encode()
    assert every_shard(index) == read
    parts = [wanted_tensors(range(i, i + 1), i == 0, i == len(spec.layers) - 1) for i in range(len(spec.layers))]
    assert {tensor for tensor in read if any(wanted(tensor) for wanted in parts)} == read


@pytest.mark.parametrize("tensor", ["lm_head.qweight", "model.layers.0.mlp.down_proj.qzeros", "output.weight", "rope_freqs.weight"])
def test_names_of_quantised_tensors_and_of_gguf_files(tensor: str) -> None:
    assert wanted_tensors(range(1), first=True, last=True)(tensor)
