"""Of a model in several files, those that the layers need."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.config import NodeSettings
from shoal.control import messages as control
from shoal.errors import UserError
from shoal.models.manifest import Manifest, manifest
from shoal.models.weights import open_spec
from shoal.node.fetch import Fetcher
from shoal.node.holding import PulledModel
from shoal.node.host_environment import HostEnvironment
from shoal.node.share import Share
from shoal.transport import tcp
from tests.support import tiny
from tests.support.gguf_split import split
from tests.support.gguf_writer import write_model
from tests.support.share import order, played, serve


def test_of_a_sharded_model_only_what_the_layers_need(machine: HostEnvironment, tmp_path: Path):
    home = tiny.saved(tiny.model("llama"), tmp_path / "model", max_shard_size="60KB")
    listed, files = manifest(str(home), home, directory=tmp_path / "head")
    wanted = order(reference="/not/here", files=listed.files)
    wanted.first_layer, wanted.end_layer = 1, 2

    async def scenario() -> None:
        holder, ends = Share(), list[Exception]()
        holder.add(files)
        listener = await tcp.listen("127.0.0.1", 0, lambda stream: serve(stream, holder, ends))
        wanted.peers.append(control.Peer(host="127.0.0.1", port=listener.port, files=list(range(len(listed.files)))))
        await Fetcher(machine, Share(), tmp_path / "node").fill(wanted)
        await listener.close()

    played(scenario())
    made = Manifest("/not/here", listed.files)
    place = made.located(range(1, 2), False, False, tmp_path / "node")
    assert place is not None
    have = {p.name for p in place.iterdir()}
    assert {"config.json", "model.safetensors.index.json"} < have < {f.name for f in listed.files}
    assert all((place / name).read_bytes() == (home / name).read_bytes() for name in have)


async def filled(machine: HostEnvironment, wanted: control.Load, files: dict[str, Path]) -> None:
    """An order for a model whose files a peer has, all of them, over a socket."""
    holder = Share()
    holder.add(files)
    listener = await tcp.listen("127.0.0.1", 0, lambda stream: serve(stream, holder, []))
    wanted.peers.append(control.Peer(host="127.0.0.1", port=listener.port, files=list(range(len(wanted.files)))))
    await Fetcher(machine, Share()).fill(wanted)
    await listener.close()


def test_of_a_gguf_file_in_parts_only_those_that_the_layers_need(machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "node"))
    whole = write_model(tmp_path / "m.gguf", tiny.model("llama"), "llama", "q8_0")
    (tmp_path / "parts").mkdir()
    parts = split(whole, tmp_path / "parts", 5)
    listed, files = manifest(str(parts[0]), parts[0], directory=tmp_path / "head")
    wanted = order(reference="/not/here/m-00001-of-00005.gguf", files=listed.files)
    wanted.layers, wanted.first_layer, wanted.end_layer = 3, 2, 3
    wanted.precision, wanted.kv_type, wanted.codec = "auto", "bf16", "raw"

    played(filled(machine, wanted, files))
    model = PulledModel(NodeSettings(threads=1), wanted)
    model.load(range(2, 3))
    assert model.layers == [range(2, 3)]
    model.report(report := control.PipelineReport())
    assert report.fetched_from_origin == 0
    have = {p.name for p in Manifest("/not/here", listed.files).home(tmp_path / "node").iterdir()}
    assert {"model.gguf.index.json", "model-00001-of-00005.gguf", "model-00005-of-00005.gguf"} <= have < {f.name for f in listed.files}


def test_layers_of_a_path_that_is_not_here_are_loaded_from_the_cache(
    machine: HostEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "node"))
    home = tiny.saved(tiny.model("llama"), tmp_path / "model", max_shard_size="60KB")
    listed, files = manifest(str(home), home, directory=tmp_path / "head")
    wanted = order(reference="/not/here", files=listed.files)
    spec = open_spec(home)
    wanted.layers = wanted.end_layer = len(spec.layers)
    wanted.precision, wanted.kv_type, wanted.codec = "auto", "bf16", "raw"
    model = PulledModel(NodeSettings(threads=1, runtime="onnxruntime"), wanted)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="no such file"):
        model.load(range(1, 2))

    played(filled(machine, wanted, files))
    model.load(range(1, 2))
    assert model.layers == [range(1, 2)]
    model.report(report := control.PipelineReport())
    assert report.fetched_from_origin == 0
