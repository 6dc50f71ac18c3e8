"""A configuration file with sections of models: real processes, trained weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import MODEL, Cluster, cluster, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPT = "The capital of France is"
FILE = """\
[head]
slots = 4
context = 1024

[models.{model}]
context = 256
precision = "q8"
replicas = 2
nodes = "desk, shelf"

[models."{other}"]
precision = "fp32"
priority = 10
kv-type = "fp32"
nodes = "attic"
batch-size = 2
batch-delay = 0.5
"""


@pytest.fixture
def other(tmp_path: Path, smollm2: Path) -> Path:
    """The same weights under another name."""
    path = tmp_path / "other.gguf"
    try:
        os.link(smollm2.resolve(), path)
    except OSError:  # another file system
        shutil.copy(smollm2, path)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as one:
        yield one


def config(folder: Path, text: str) -> dict[str, str]:
    """The environment that names the file."""
    path = folder / "shoal.toml"
    path.write_text(text)
    path.chmod(0o600)
    return {"SHOAL_CONFIG": str(path)}


def served(made: Cluster) -> dict[str, dict[str, Any]]:
    """What `shoal models served --json` says, by name."""
    command = made.start("models", "served", "--json", "--url", made.url)
    assert command.wait() == 0, command.describe()
    return {model["name"]: model for model in json.loads(command.said)}


def parts(made: Cluster) -> dict[str, set[str]]:
    """The models of which each node has a part, by its name."""
    shown = made.start("nodes", "--head", f"127.0.0.1:{made.control_port}", "--json")
    assert shown.wait() == 0, shown.describe()
    nodes = json.JSONDecoder().raw_decode(shown.said, shown.said.index("{\n"))[0]["nodes"]  # beside what gRPC logs
    return {node["name"]: {part["model"] for part in node["parts"]} for node in nodes}


def test_each_model_is_served_as_its_section_says(tmp_path: Path, made: Cluster, other: Path) -> None:
    environment = config(tmp_path, FILE.format(model=MODEL, other=other))
    head = made.start(
        *("serve", "--port", str(made.port), "--control-port", str(made.control_port), "--discovery", "none"),
        *("--model", MODEL, "--model", str(other), "--min-nodes", "2"),
        **environment,
    )
    for name in ("desk", "shelf"):
        made.join("--name", name)
    head.until_said("API on")
    until(lambda: served(made)[MODEL]["serving"] == 2, made.story, every=0.5)
    first, second = served(made).values()
    assert (first["context"], first["precision"], first["replicas"], first["priority"]) == (256, "q8", 2, 0)
    assert (first["nodes"], first["absent"], first["state"]) == (["desk", "shelf"], [], "")
    assert (second["context"], second["precision"], second["replicas"], second["priority"]) == (1024, "fp32", 1, 10)
    assert (second["nodes"], second["absent"], second["state"]) == (["attic"], ["attic"], "it waits for node attic")
    refused = made.complete(PROMPT, model="other")
    assert refused.status_code == 503 and "it waits for node attic" in refused.text, refused.text
    assert made.texts(PROMPT, model=MODEL)

    made.join("--name", "attic")
    made.until_ready()
    assert parts(made) == {"desk": {MODEL}, "shelf": {MODEL}, "attic": {"other"}}
    assert {name: (model["serving"], model["absent"]) for name, model in served(made).items()} == {MODEL: (2, []), "other": (1, [])}
    long = [1] * 300
    assert made.complete(long, model="other").status_code == 200
    assert "at most 256 fit" in (said := made.complete(long, model=MODEL)).text and said.status_code == 400, said.text
    with ThreadPoolExecutor(3) as pool:  # two that are gathered, and one that waits for others in vain
        texts = list(pool.map(lambda model: made.texts(PROMPT, 12, model=model)[0], ["other", "other", MODEL]))
    assert texts[0] == texts[1] == made.texts(PROMPT, 12, model="other")[0]

    loaded = made.start("models", "unload", "other", "--url", made.url)
    assert loaded.wait() == 0, loaded.describe()
    assert "is served by 1 of 1 copy" in _said(made, "models", "load", str(other), "--url", made.url)
    again = served(made)["other"]
    assert (again["context"], again["precision"], again["priority"], again["nodes"]) == (1024, "fp32", 10, ["attic"])


def _said(made: Cluster, *words: str) -> str:
    command = made.start(*words)
    assert command.wait() == 0, command.describe()
    return command.said


def test_up_serves_though_a_model_waits_for_a_node_and_a_flag_goes_before_the_file(tmp_path: Path, made: Cluster, other: Path) -> None:
    text = f'[models.other]\ncontext = 256\nnodes = "laptop"\n[models.{MODEL}]\ncontext = 512\n'
    head = made.up("--model", MODEL, "--model", str(other), "--nodes", "1", "--slots", "2", **config(tmp_path, text))
    head.until_said("more nodes: ")
    until(lambda: "other: it waits for node laptop" in head.said, head.describe)
    assert made.texts(PROMPT, model=MODEL)
    assert {name: model["context"] for name, model in served(made).items()} == {MODEL: 512, "other": 256}
    made.join("--name", "laptop")
    made.until_ready()
    assert made.texts(PROMPT, model="other") and "laptop" in parts(made)
    head.end()
    flagged = made.up("--model", MODEL, "--nodes", "1", "--slots", "2", "--context", "128", **config(tmp_path, text))
    flagged.until_said("more nodes: ")
    assert served(made)[MODEL]["context"] == 128
    assert "--model does not name" not in head.said
    assert f"{tmp_path / 'shoal.toml'}:2: [models.other] is about a model that --model does not name" in flagged.said.splitlines()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[models.x]\ncontex = 5", ":2: [models.x] has no key 'contex' (did you mean 'context'?)"),
        ("[models.x]\nbatch-size = 9\nbatch-delay = 1\nslots = 4", ":2: [models.x]: batch-size 9 would never be reached: slots is 4"),
        ("[models.y-2.5]\nslots = 4", ':1: a name with a dot needs quotes: [models."y-2.5"]'),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, made: Cluster, text: str, told: str) -> None:
    command = made.start("serve", **config(tmp_path, text))
    assert command.wait() == 2
    assert command.said.strip() == f"error: {tmp_path / 'shoal.toml'}{told}"
