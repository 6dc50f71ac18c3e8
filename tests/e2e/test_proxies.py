"""Proxies that the environment names: for fetching models, never between the machines of a cluster."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import forks
from tests.support.cluster import cluster
from tests.support.hub_server import Hub
from tests.support.recording_proxy import RecordingProxy
from tests.support.tiny_sizes import SIZES

pytestmark = [pytest.mark.real, pytest.mark.slow]

TOY = {**SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QUESTION = "What is the capital of France?"


def ask(url: str, environment: dict[str, str]) -> str:
    """`shoal run` as a client of a cluster."""
    done = forks.run(("run", QUESTION, "--url", url, "--max-tokens", "4"), {**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def life(folder: Path, model: Path, environment: dict[str, str]) -> None:
    """A cluster over real sockets, with TLS and pairing, a node that joins, and every command that talks to it."""
    with cluster(folder) as made:
        common = ("--secure", "--discovery", "none", "--model", str(model), "--min-nodes", "2", "--spread", "--api-workers", "2")
        ports = ("--port", str(made.port), "--control-port", str(made.control_port))
        environment = {**environment, "SHOAL_HOME": str(folder / "home")}
        head = made.start("serve", *ports, *common, **environment)
        head.until_said("pairing code")
        code = head.said.split("pairing code ")[1].split(",")[0]
        address = f"127.0.0.1:{made.control_port}"
        first = made.start("join", address, "--code", code, "--threads", "1", "--memory", "1GiB", "--name", "a", **environment)
        head.until_said("has paired")
        made.start("join", address, "--threads", "1", "--memory", "1GiB", "--name", "b", **environment)
        made.until_ready()
        assert ask(made.url, environment).strip()
        nodes = forks.run(("nodes", "--head", address), {**os.environ, **environment})
        assert nodes.returncode == 0, nodes.stderr
        assert "a " in nodes.stdout and "b " in nodes.stdout
        assert first.popen.poll() is None


def test_a_proxy_sees_the_fetching_of_models_and_nothing_else(tmp_path: Path, smollm2: Path) -> None:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = struct.pack("<Q", len(header)) + header + bytes(16)
    files = {"tokenizer.json": b"[]", "config.json": json.dumps(TOY).encode(), "model.safetensors": weights}
    made_hub = Hub("org/toy", files)
    made_hub.large = 1 << 30  # nothing is redirected past the proxy
    with made_hub.running() as hub, RecordingProxy(("127.0.0.1", urlsplit(hub.url).port or 0)).running() as proxy:
        life(tmp_path, smollm2, proxy.environment)
        assert proxy.asked == []
        (tmp_path / "cache").mkdir()
        with cluster(tmp_path / "cache") as made:  # names that only the proxy can resolve
            elsewhere = {**proxy.environment, "SHOAL_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
            pull = made.start("models", "pull", "hf:org/toy", HF_ENDPOINT="http://hub.invalid", **elsewhere)
            assert pull.wait() == 0, pull.describe()
            assert hub.fetched() == set(files)
            assert {urlsplit(target).netloc for _, target in proxy.asked} == {"hub.invalid"}
            assert not [target for _, target in proxy.asked if "agent" in target or "telemetry" in target]
            hub.status = 404
            index = {"PIP_INDEX_URL": "http://index.invalid/simple", "PIP_TRUSTED_HOST": "index.invalid", "PIP_RETRIES": "0"}
            pull = made.start("models", "pull", "smollm2-135m", **index, **elsewhere)
            assert pull.wait() == 1
            assert "could not be fetched" in pull.said
            assert any(urlsplit(target).netloc == "index.invalid" for _, target in proxy.asked)


def test_a_socks_proxy_that_the_hub_s_client_cannot_use_is_an_error_that_says_so(tmp_path: Path) -> None:
    with cluster(tmp_path) as made:
        pull = made.start("models", "pull", "hf:org/toy", ALL_PROXY="socks5://127.0.0.1:9", SHOAL_CACHE=str(tmp_path / "cache"))
        assert pull.wait() == 1
        assert "error: hf:org/toy could not be fetched: " in pull.said and "SOCKS" in pull.said and "Traceback" not in pull.said
