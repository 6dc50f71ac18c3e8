"""Models of every family are found in a hub and in other tools' folders, by whichever of its names they give the family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.models.families import ARCHITECTURES, BY_MODEL_TYPE
from shoal.models.hub_search import search
from shoal.models.inventory import inventory
from tests.support.hub_server import Hub
from tests.support.stores import lmstudio_models


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for variable in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    with Hub("org/toy", {}).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gguf_file_is_found_in_the_hub_by_its_architecture(name: str, hub: Hub) -> None:
    hub.found = [
        {"id": "org/toy", "downloads": 1, "likes": 0, "gguf": {"architecture": name}, "siblings": [{"rfilename": "toy-Q8_0.gguf"}]},
        {"id": "org/toy-2", "downloads": 0, "likes": 0, "gguf": {"architecture": "mamba"}, "siblings": [{"rfilename": "toy-Q8_0.gguf"}]},
    ]
    assert [hit.name for hit in search("toy", 9)] == ["org/toy"]


@pytest.mark.parametrize("name", BY_MODEL_TYPE)
def test_safetensors_are_found_in_the_hub_by_their_model_type(name: str, hub: Hub) -> None:
    siblings = [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]
    hub.found = [
        {"id": "org/toy", "downloads": 1, "likes": 0, "config": {"model_type": name}, "siblings": siblings},
        {"id": "org/toy-2", "downloads": 0, "likes": 0, "config": {"model_type": "mamba"}, "siblings": siblings},
    ]
    assert [hit.name for hit in search("toy", 9)] == ["org/toy"]


@pytest.mark.parametrize("name", BY_MODEL_TYPE)
@pytest.mark.usefixtures("hub")
def test_safetensors_are_found_in_folders_by_their_model_type(name: str, tmp_path: Path) -> None:
    for repository, kind in (("org/toy", name), ("org/toy-2", "mamba")):
        files = {"config.json": json.dumps({"model_type": kind}).encode(), "model.safetensors": b"?"}
        lmstudio_models(tmp_path / "home", repository, files)
    assert [model.name for model in inventory()] == ["lmstudio:org/toy"]
