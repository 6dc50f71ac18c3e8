"""GGUF models of a hub, a local one: what is fetched, resumed, refused, and what is used where another tool has it."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import FetchError, HashMismatch, Unreachable, UnsupportedModel, UserError
from shoal.models.gguf_files import INDEX
from shoal.models.inventory import inventory
from shoal.models.manifest import manifest
from shoal.models.reference import Reference
from shoal.models.removal import removal
from shoal.models.sources import pin, pull, pull_layers, resolve
from shoal.models.weights import GgufWeights
from tests.support import tiny
from tests.support.gguf_split import split
from tests.support.gguf_writer import write_model
from tests.support.hub_server import Hub
from tests.support.stores import hub_cache, lmstudio_models, ollama_store


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a repository: models of two quantisations, one of them in parts, and things that nobody needs."""
    folder = tmp_path_factory.mktemp("gguf")
    whole = write_model(folder / "toy-Q8_0.gguf", tiny.model("llama"), "llama", "q8_0")
    parts = split(write_model(folder / "toy.gguf", tiny.model("llama", seed=1), "llama", "f32"), folder, 5, "toy-F32")
    files = {"toy-Q8_0.gguf": whole.read_bytes(), **{f"F32/{part.name}": part.read_bytes() for part in parts}}
    return {**files, "README.md": b"#", "mmproj-toy-Q8_0.gguf": b"?" * 9000, "pytorch_model.bin": b"?" * 9000, "onnx/model.onnx": b"?"}


@pytest.fixture
def hub(models: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    with Hub("org/toy", models).running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_only_the_model_s_file_is_fetched(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = pull("hf:org/toy:q8_0", lambda *at: seen.append(at))
    assert path.read_bytes() == models["toy-Q8_0.gguf"]
    assert hub.fetched() == {"toy-Q8_0.gguf"}
    assert seen[-1] == (len(models["toy-Q8_0.gguf"]),) * 2
    assert len(GgufWeights(path).spec.layers) == 3
    assert path.resolve().name == sha(models["toy-Q8_0.gguf"])
    assert list((tmp_path / "cache" / "parts").glob("*.part")) == []


def test_a_token_goes_to_the_hub_and_to_nobody_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated, hub.token = True, "hf_secret"
    pull("org/toy:Q8_0")
    assert {given for who, given in hub.given if who == "hub"} == {"Bearer hf_secret"}
    assert {given for who, given in hub.given if who == "cdn"} == {None}


def test_the_default_is_what_llama_cpp_takes(hub: Hub, models: dict[str, bytes]) -> None:
    assert pin("org/toy") == f"hf:org/toy:toy-Q8_0.gguf@{hub.main}"
    assert pin(pin("org/toy")) == pin("org/toy")


def test_all_parts_of_a_split_model_are_fetched(hub: Hub, models: dict[str, bytes]) -> None:
    path = pull("org/toy:f32")
    assert hub.fetched() == {name.rpartition("/")[2] for name in models if name.startswith("F32/")}
    assert path.name == "model-00001-of-00005.gguf"
    assert GgufWeights(path).matrix("layers.2.down").n == 64


def test_a_node_with_an_index_fetches_only_the_parts_of_its_layers(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    source = resolve("org/toy:f32")
    made, files = manifest(str(source.reference), source.pull(), directory=tmp_path / "cache")
    assert {f.sha256 for f in made.files if f.name != INDEX} == {sha(c) for name, c in models.items() if name.startswith("F32/")}
    node = tmp_path / "node"
    index = next(f for f in made.files if f.name == INDEX)
    made.home(node).mkdir(parents=True)
    (made.home(node) / INDEX).write_bytes(files[index.sha256].read_bytes())
    hub.asked.clear()
    path = pull_layers(str(source.reference), range(1, 2), False, False, directory=node)
    assert made.located(range(1, 2), False, False, node) == path
    assert len(hub.fetched()) < 5


@pytest.fixture
def large(hub: Hub) -> bytes:
    """A file of several pieces, which is no model that shoal has to read."""
    content = np.random.default_rng(0).bytes(10 << 20)
    hub.commits[hub.main] = {"config.json": b"{}", "model.safetensors": content}
    return content


def test_what_broke_off_goes_on_where_it_ended(hub: Hub, large: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.models.download._TRIES", 1)
    monkeypatch.setattr("shoal.models.download._CONNECTIONS", 1)
    hub.cut["model.safetensors"] = 9 << 20
    with pytest.raises(Unreachable):
        pull_layers("org/toy", range(1), True, True)
    hub.asked.clear()
    home = pull_layers("org/toy", range(1), True, True)
    assert (home / "model.safetensors").read_bytes() == large
    assert [asked for method, path, asked in hub.asked if method == "GET" and path.endswith(".safetensors")] == [
        f"bytes={8 << 20}-{(10 << 20) - 1}"
    ]


def test_a_connection_that_breaks_is_tried_again(hub: Hub, large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.models.download._FIRST_DELAY", 0.001)
    hub.cut["model.safetensors"] = 5 << 20
    home = pull_layers("org/toy", range(1), True, True)
    assert (home / "model.safetensors").read_bytes() == large


@pytest.mark.parametrize("cut", [None, 5 << 20])
def test_a_server_without_ranges_sends_all_of_it(cut: int | None, hub: Hub, large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.models.download._FIRST_DELAY", 0.001)
    hub.ranges = False
    if cut is not None:
        hub.cut["model.safetensors"] = cut
    home = pull_layers("org/toy", range(1), True, True)
    assert (home / "model.safetensors").read_bytes() == large
    assert sum(method == "GET" and path.endswith(".safetensors") for method, path, _ in hub.asked) == (1 if cut is None else 2)


def test_content_of_another_hash_is_not_kept(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    content = bytearray(models["toy-Q8_0.gguf"])
    content[-1] ^= 1
    hub.spoilt["toy-Q8_0.gguf"] = bytes(content)
    with pytest.raises(HashMismatch, match="discarded"):
        pull("org/toy:Q8_0")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == len(content)]


# What shoal does not run


def test_a_quantisation_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(UserError, match="org/toy has no Q5_K_M; it has F32, Q8_0"):
        pull("org/toy:Q5_K_M")
    assert hub.fetched() == set()


def unusable(content: bytes, old: int, new: int) -> bytes:
    """The tensors of one type said to be of another one, and much data behind them."""
    at = content.index(b"blk.0.ffn_down.weight") + len("blk.0.ffn_down.weight") + 4 + 16
    assert struct.unpack_from("<I", content, at)[0] == old
    return content[:at] + struct.pack("<I", new) + content[at + 4 :] + bytes(24 << 20)


def test_formats_that_do_not_run_are_refused_by_the_header(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    hub.commits[hub.main] = {**models, "toy-Q8_0.gguf": unusable(models["toy-Q8_0.gguf"], 8, 9)}
    with pytest.raises(UnsupportedModel, match=r"ffn_down.weight has the type Q8_1.*supported are.*it has F32, Q8_0"):
        pull("org/toy:Q8_0")
    assert [asked for method, _, asked in hub.asked if method == "GET" and asked] == [f"bytes=0-{(4 << 20) - 1}"]
    assert list((tmp_path / "cache" / "parts").glob("*.part")) == []


def test_architectures_that_do_not_run_are_refused_by_the_header(hub: Hub, models: dict[str, bytes]) -> None:
    content = models["toy-Q8_0.gguf"].replace(b"llama", b"mamba") + bytes(24 << 20)
    hub.commits[hub.main] = {"toy-Q8_0.gguf": content}
    with pytest.raises(UnsupportedModel, match="architecture 'mamba' is not supported"):
        pull("org/toy")
    assert len([asked for method, _, asked in hub.asked if method == "GET" and asked]) == 1


def test_safetensors_of_other_types_are_refused_by_the_header(hub: Hub, tmp_path: Path) -> None:
    home = tiny.saved(tiny.model("llama"), tmp_path / "made")
    files = {f.name: f.read_bytes() for f in home.iterdir()}
    weights = files["model.safetensors"].replace(b'"dtype":"F32"', b'"dtype":"I32"') + bytes(1 << 20)
    hub.commits[hub.main] = {**files, "model.safetensors": weights}
    for call in (pull, lambda text: resolve(text).pull_description()):
        with pytest.raises(UnsupportedModel, match="is I32; supported are F32, F16, BF16"):
            call("org/toy")
    assert {asked for method, path, asked in hub.asked if method == "GET" and path.endswith(".safetensors")} == {"bytes=0-100000"}


# Who may


def test_a_gated_model_says_where_its_terms_are(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.token = True, "hf_good"
    with pytest.raises(
        FetchError, match=rf"hf:org/toy is gated: accept its terms at {hub.url}/org/toy, then log in with `hf auth login`, or set HF_TOKEN$"
    ):
        pull("org/toy:Q8_0")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(FetchError, match="is gated: accept its terms at"):
        pull("org/toy:Q8_0")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert pull("org/toy:Q8_0").exists()


def test_a_private_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private, hub.token = True, "hf_good"
    with pytest.raises(FetchError, match=r"no such model.*If it is private: log in with `hf auth login`, or set HF_TOKEN"):
        pull("hf:org/toy:Q8_0")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert pull("org/toy:Q8_0").exists()


def test_a_name_that_is_neither_the_hub_s_nor_a_path_says_both(hub: Hub) -> None:
    with pytest.raises(FetchError, match=r"no such model.*There is no file or folder models/none either"):
        pull("models/none")


# Without a hub


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_is_here_is_used_where_the_hub_does_not_answer(status: int, hub: Hub, models: dict[str, bytes]) -> None:
    path = pull("org/toy:Q8_0")
    hub.status = status
    assert pull("org/toy:Q8_0") == path
    assert pull("org/toy") == path
    with pytest.raises(Unreachable):
        pull("org/toy:F32")


def test_a_model_of_the_catalogue_stands_in_by_its_hub_name(hub: Hub, tmp_path: Path) -> None:
    hub.status = 503
    place = tmp_path / "cache" / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"GGUF")
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "hf:huggingfacetb/smollm2-135m-instruct:q4_1"):
        assert pin(name) == "smollm2-135m"
        assert pull(name) == place
    with pytest.raises(Unreachable):
        pull("HuggingFaceTB/SmolLM2-135M-Instruct:Q8_0")


# What other tools have


def modified(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def stores(tmp_path: Path, content: bytes, *tools: str) -> dict[str, Path]:
    """tools: those that have the model; all where none is named."""
    home = tmp_path / "home"
    make = {
        "hub": lambda: hub_cache(home / ".cache" / "huggingface" / "hub", "org/toy", "a" * 40, {"toy-Q8_0.gguf": content}),
        "ollama": lambda: ollama_store(home / ".ollama" / "models", {"anything:8b": content}),
        "lmstudio": lambda: lmstudio_models(home, "org/toy", {"toy-Q8_0.gguf": content}),
    }
    return {name: make[name]() for name in tools or make}


@pytest.mark.parametrize("tool", ["hub", "ollama", "lmstudio"])
def test_what_another_tool_has_is_used_where_it_lies(tool: str, hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    content = models["toy-Q8_0.gguf"]
    stores(tmp_path, content, tool)
    before = modified(tmp_path / "home")
    path = pull("org/toy:Q8_0")
    assert path.resolve().is_relative_to(tmp_path / "home")
    assert path.read_bytes() == content
    assert hub.fetched() == set()
    assert modified(tmp_path / "home") == before
    path.resolve().unlink()
    assert pull("org/toy:Q8_0").read_bytes() == content
    assert hub.fetched() == {"toy-Q8_0.gguf"}


def test_a_file_in_another_store_that_is_not_what_its_name_says_is_left(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    content = models["toy-Q8_0.gguf"]
    there = stores(tmp_path, content)
    spoilt = content[:-1] + bytes([content[-1] ^ 1])
    for path in (there["hub"] / "toy-Q8_0.gguf", there["ollama"] / "blobs" / f"sha256-{sha(content)}", there["lmstudio"] / "toy-Q8_0.gguf"):
        path.resolve().write_bytes(spoilt)
    path = pull("org/toy:Q8_0")
    assert path.read_bytes() == content
    assert path.resolve().is_relative_to(tmp_path / "cache")


def test_the_hub_s_own_cache_does_without_a_hub(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    stores(tmp_path, models["toy-Q8_0.gguf"])
    hub.status = 503
    path = pull("org/toy")
    assert path.read_bytes() == models["toy-Q8_0.gguf"]
    assert pin("org/toy") == f"hf:org/toy:toy-Q8_0.gguf@{'a' * 40}"


def test_ollama_s_models_are_used_where_they_lie(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    store = stores(tmp_path, models["toy-Q8_0.gguf"])["ollama"]
    blob = store / "blobs" / f"sha256-{sha(models['toy-Q8_0.gguf'])}"
    assert pull("anything:8b") == pull("ollama:library/anything:8b") == blob
    assert pin("anything:8b") == str(blob)
    assert hub.asked == []
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    os.utime(blob, ns=(1, 1))
    with pytest.raises(Exception, match="not what Ollama's name for it says"):
        pull("anything:8b")
    with pytest.raises(UserError, match=r"has no anithing:8b \(did you mean 'anything:8b'\?\)"):
        pull("ollama:anithing:8b")


def test_an_adapter_of_ollama_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama_store(tmp_path / "o", {"tuned": b"GGUF"}, adapter=True)))
    with pytest.raises(UnsupportedModel, match="adapter"):
        pull("tuned")


def test_models_of_lm_studio(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    home = stores(tmp_path, models["toy-Q8_0.gguf"])["lmstudio"]
    (home / "toy-F32.gguf").write_bytes(b"GGUF")
    assert pull("lmstudio:org/toy") == pull("lmstudio:org/toy:q8_0") == home / "toy-Q8_0.gguf"
    assert pull("lmstudio:org/toy/toy-F32.gguf") == home / "toy-F32.gguf"
    with pytest.raises(UserError, match="LM Studio has no org/tiy"):
        pull("lmstudio:org/tiy")
    assert hub.asked == []


# Lists, and what goes


def test_the_inventory_says_whose_a_model_is(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    stores(tmp_path, models["toy-Q8_0.gguf"])
    pull("org/toy:F32")
    pull("org/toy:Q8_0")  # a link
    size = {True: len(models["toy-Q8_0.gguf"]), False: sum(len(c) for name, c in models.items() if name.startswith("F32/"))}
    assert [(m.name, m.owner, m.quantization, m.bytes) for m in inventory()] == [
        ("org/toy:F32", "shoal", "F32", size[False]),
        ("org/toy:Q8_0", "Hugging Face", "Q8_0", size[True]),
        ("anything:8b", "Ollama", "Q4_1", size[True]),
        ("lmstudio:org/toy:Q8_0", "LM Studio", "Q8_0", size[True]),
    ]
    assert all(Reference.parse(m.name) for m in inventory())


def test_one_of_two_models_of_a_repository_goes(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    pull("org/toy:F32")
    kept = pull("org/toy:Q8_0")
    found = removal("org/toy:f32")
    assert found is not None
    assert found.bytes == sum(len(c) for name, c in models.items() if name.startswith("F32/"))
    found.check()
    found.carry_out()
    assert [m.name for m in inventory()] == ["org/toy:Q8_0"]
    assert kept.exists()
    with pytest.raises(UserError, match="is here as Q8_0, not as F32"):
        removal("org/toy:F32")
    rest = removal("hf:org/toy")
    assert rest is not None
    rest.carry_out()
    assert inventory() == []
    assert removal("org/toy") is None
    assert not list((tmp_path / "cache" / "hub").iterdir())


def test_what_other_tools_have_is_not_removed(hub: Hub, models: dict[str, bytes], tmp_path: Path) -> None:
    stores(tmp_path, models["toy-Q8_0.gguf"])
    pull("org/toy:Q8_0")
    before = modified(tmp_path / "home")
    for name, words in {
        "org/toy": "`hf cache rm model/org/toy`",
        "anything:8b": "`ollama rm anything:8b`",
        "lmstudio:org/toy": "My Models",
        str(tmp_path): "a file or folder of yours",
    }.items():
        with pytest.raises(UserError, match=words):
            removal(name)
    assert modified(tmp_path / "home") == before


def test_a_model_that_a_process_has_open_is_not_removed(hub: Hub) -> None:
    weights = GgufWeights(pull("org/toy:Q8_0"))
    found = removal("org/toy")
    assert found is not None
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        found.check()
    assert len(weights.spec.layers) == 3


def test_what_a_broken_fetch_left_goes_too(hub: Hub, large: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.models.download._TRIES", 1)
    hub.cut["model.safetensors"] = 9 << 20
    with pytest.raises(Unreachable):
        pull_layers("org/toy", range(1), True, True)
    found = removal("org/toy")
    assert found is not None
    found.carry_out()
    assert [path.name for path in (tmp_path / "cache" / "parts").iterdir() if path.suffix != ".lock"] == []
