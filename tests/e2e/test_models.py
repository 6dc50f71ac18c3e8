"""`shoal models` and `shoal run` as processes, with a hub and caches of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster, cluster, until
from tests.support.hub_server import Hub
from tests.support.stores import lmstudio_models, ollama_store
from tests.support.terminal import terminal

pytestmark = [pytest.mark.real, pytest.mark.slow]

FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"


@pytest.fixture(scope="module")
def hub(smollm2: Path) -> Iterator[Hub]:
    """A repository with a trained model."""
    with Hub("org/SmolLM2-GGUF", {FILE: smollm2.read_bytes(), "README.md": b"#"}).running() as hub:
        hub.found = [
            {
                "id": "bartowski/SmolLM2-135M-Instruct-GGUF",
                "downloads": 1234567,
                "likes": 89,
                "gguf": {"total": 134515008, "architecture": "llama"},
                "siblings": [{"rfilename": f"SmolLM2-135M-Instruct-{q}.gguf"} for q in ("Q4_K_M", "Q8_0", "IQ4_KS")],
            },
            {
                "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "downloads": 99,
                "likes": 1,
                "safetensors": {"parameters": {"BF16": 134515008}, "total": 134515008},
                "config": {"model_type": "llama"},
                "siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}],
                "gated": "auto",
            },
            {"id": "x/SmolLM2-mamba", "downloads": 9, "likes": 0, "gguf": {"architecture": "mamba"}, "siblings": [{"rfilename": "a.gguf"}]},
            {"id": "x/SmolLM2-adapter", "downloads": 8, "likes": 0, "siblings": [{"rfilename": "adapter_model.safetensors"}]},
        ]
        yield hub


@pytest.fixture
def place(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An environment with a home of its own and that hub."""
    hub.status = None
    hub.asked.clear()
    (tmp_path / "home").mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "SHOAL_CACHE": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.url,
        "OLLAMA_MODELS": "",
        "COLUMNS": "80",
    }


def without_ours(environment: dict[str, str]) -> dict[str, str]:
    mine = ("SHOAL_", "XDG_", "HF_", "OLLAMA_")
    return {**{key: value for key, value in os.environ.items() if not key.startswith(mine)}, **environment}


def shoal(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=without_ours(environment),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows(environment: dict[str, str], *arguments: str) -> Any:
    return json.loads(shoal(environment, *arguments, "--json").stdout)


def test_a_model_is_fetched_listed_and_removed(place: dict[str, str], smollm2: Path) -> None:
    done = shoal(place, "models", "pull", "org/SmolLM2-GGUF")
    assert (done.returncode, done.stderr) == (0, "")
    path = Path(done.stdout.strip())
    assert path.stat().st_size == smollm2.stat().st_size
    listed = {row["name"]: row for row in rows(place, "models", "list")}
    assert listed["org/SmolLM2-GGUF:Q4_1"]["bytes"] == smollm2.stat().st_size
    assert listed["org/SmolLM2-GGUF:Q4_1"]["owner"] == "shoal"
    assert listed["smollm2-135m"]["fetched"] is False
    assert "org/SmolLM2-GGUF:Q4_1" in shoal(place, "models").stdout
    removed = shoal(place, "models", "rm", "org/SmolLM2-GGUF:q4_1")
    assert (removed.returncode, removed.stderr) == (0, "93.8 MiB freed\n")
    assert not path.exists()
    assert "was not here" in shoal(place, "models", "rm", "org/SmolLM2-GGUF").stderr


def test_other_tools_models_are_listed_and_kept(place: dict[str, str], smollm2: Path) -> None:
    store = ollama_store(Path(place["HOME"], ".ollama", "models"), {"smol:135m": smollm2.read_bytes()})
    lmstudio_models(Path(place["HOME"]), "org/SmolLM2-GGUF", {FILE: smollm2.read_bytes()})
    assert {(row["name"], row["owner"], row["quantization"]) for row in rows(place, "models", "list") if row["fetched"]} == {
        ("smol:135m", "Ollama", "Q4_1"),
        ("lmstudio:org/SmolLM2-GGUF:Q4_1", "LM Studio", "Q4_1"),
    }
    done = shoal(place, "models", "rm", "smol:135m", "--yes")
    assert (done.returncode, done.stderr) == (2, "error: smol:135m is in Ollama's store; `ollama rm smol:135m` removes it\n")
    pulled = Path(shoal(place, "models", "pull", "smol:135m").stdout.strip())
    assert pulled.parent == store / "blobs"


def test_a_search_shows_what_runs(place: dict[str, str], hub: Hub) -> None:
    done = shoal(place, "models", "search", "smollm2", "135m")
    assert done.stdout.splitlines() == [
        "name                                  fetched  likes  size  as",
        "bartowski/SmolLM2-135M-Instruct-GGUF  1.2M     89     134M  Q4_K_M +1",
        "HuggingFaceTB/SmolLM2-135M-Instruct   99       1      134M  safetensors, gated",
    ]
    assert [(row["name"], row["downloads"], row["parameters"]) for row in rows(place, "models", "search", "smollm2")] == [
        ("bartowski/SmolLM2-135M-Instruct-GGUF", 1234567, 134515008),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 99, 134515008),
    ]
    assert "nothing with 'no such'" in shoal(place, "models", "search", "no", "such").stderr
    hub.status = 503
    done = shoal(place, "models", "search", "smollm2")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "a search of the hub: the hub answered 503; try again later" in done.stderr


def test_at_a_terminal_the_table_fits_and_removal_is_asked_for(place: dict[str, str]) -> None:
    with terminal("models", "search", "smollm2", place=place) as shown:
        assert shown.wait() == 0
        lines = shown.screen.splitlines()
        assert "gated" in lines[-1] and all(len(line) <= 80 for line in lines), lines
    shoal(place, "models", "pull", "org/SmolLM2-GGUF")
    with terminal("models", "rm", "org/SmolLM2-GGUF", place=place) as shown:
        shown.until_shown("delete hf:org/SmolLM2-GGUF, 93.8 MiB? [y/N]")
        shown.type("n\r")
        assert shown.wait() == 1
    assert [row["name"] for row in rows(place, "models", "list") if row["fetched"]] == ["org/SmolLM2-GGUF:Q4_1"]


def test_without_a_network_what_is_here_is_used_or_one_line_says_what_to_do(place: dict[str, str]) -> None:
    offline = {**place, "HF_HUB_OFFLINE": "1"}
    done = shoal(offline, "models", "pull", "org/SmolLM2-GGUF")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "HF_HUB_OFFLINE keeps the hub from being asked" in done.stderr
    path = shoal(place, "models", "pull", "org/SmolLM2-GGUF").stdout
    for environment in (offline, {**place, "HF_ENDPOINT": "http://127.0.0.1:9"}):
        done = shoal(environment, "models", "pull", "org/SmolLM2-GGUF:Q4_1")
        assert (done.returncode, done.stdout) == (0, path), done.stderr


def test_a_run_on_two_nodes_fetches_its_model_from_the_hub(place: dict[str, str]) -> None:
    done = shoal(
        place,
        "run",
        "What is the capital of France?",
        "--model",
        "org/SmolLM2-GGUF:q4_1",
        "--nodes",
        "2",
        "--max-tokens",
        "12",
        "--threads",
        "1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "node-2" in done.stderr
    assert next(Path(place["SHOAL_CACHE"], "hub").rglob("model.gguf")).is_file()


def fetched(made: Cluster, node: str, source: str) -> float:
    line = f'shoal_fetched_bytes_total{{node="{node}",source="{source}"}} '
    return next((float(row.split()[1]) for row in made.http.get("/metrics").text.splitlines() if row.startswith(line)), -1.0)


def test_nodes_with_caches_of_their_own_take_a_model_of_the_hub_from_the_head_from_a_store_and_from_the_hub(
    place: dict[str, str], hub: Hub, smollm2: Path, tmp_path: Path
) -> None:
    size = smollm2.stat().st_size
    homes = {name: tmp_path / name for name in ("peer", "store", "origin")}
    store = ollama_store(homes["store"] / ".ollama" / "models", {"smol": smollm2.read_bytes()})
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    with cluster(tmp_path) as made:
        ports = ("--port", str(made.port), "--control-port", str(made.control_port), "--discovery", "none")
        # A head that others reach lists its files; one of the loopback alone does so for models of the hub, too.
        made.start("serve", *ports, "--model", "org/SmolLM2-GGUF", "--min-nodes", "3", "--spread", **place)
        ways = {"peer": (nowhere, ()), "store": (nowhere, ("--no-share",)), "origin": ({}, ("--no-share",))}
        for name, (way, flags) in ways.items():
            mine = {"HOME": str(homes[name]), "SHOAL_CACHE": str(homes[name] / "cache")}
            made.join("--name", name, *flags, **{**place, **mine, **way})
        made.until_ready()
        assert "Paris" in made.texts("The capital of France is")[0]
        assert made.http.get("/v1/models").json()["data"][0]["id"] == "org/SmolLM2-GGUF"
        until(lambda: fetched(made, "peer", "peers") == size, made.story)
        until(lambda: fetched(made, "origin", "origin") == size, made.story)
        place_of = {name: next((home / "cache" / "hub").rglob("model.gguf")) for name, home in homes.items()}
        assert place_of["store"].resolve().parent == store / "blobs"
        assert all(path.stat().st_size == size for path in place_of.values())
        made.head.end()
